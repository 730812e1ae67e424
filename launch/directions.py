"""Find directions to edit people along, without bringing any:

python -m launch.directions --workdir=runs/quickstart --output=directions

From the labels of the embedded world's people, or, with --method=components, from the principal components of codes; with
--records=FOLDER, of the W+ codes in a folder of records, whose labels are in --labels=FILE.csv (a column `picture`, and one of
numbers for each attribute). Writes directions.safetensors (for launch.edit), directions.json (what share of the variance each
explains) and directions.png (a picture of each). Attributes that the codes hardly tell are left out.
"""

from absl import flags

from launch import command_line, opening_flags

flags.adopt_module_key_flags(opening_flags)
RECORDS = command_line.define_path("records", "Folder of records; by default the run's own people.")
LABELS = command_line.define_path("labels", "CSV file of the records' attributes.")
METHOD = flags.DEFINE_enum("method", None, ["labels", "components"], "labels where there are any, by default.")
NUM_CODES = flags.DEFINE_integer("num_codes", 2000, "W+ codes to look at, at most.")
NUM_COMPONENTS = flags.DEFINE_integer("num_components", 10, "Principal components to find.")
PROMPT = flags.DEFINE_string("prompt", "a person", "Of the pictures, where no StyleGAN2 shows the codes themselves.")


def main() -> None:
    """Finds, and says what was written."""
    from pidiff_jax.pipeline.commands import Opening, Writing
    from pidiff_jax.pipeline.finding import Search, find_directions

    search = Search(
        records=RECORDS.value, labels=LABELS.value, method=METHOD.value, num_codes=NUM_CODES.value,
        num_components=NUM_COMPONENTS.value, prompt=PROMPT.value,
    )  # fmt: skip
    for line in find_directions(Opening(**opening_flags.opening()), Writing(**opening_flags.writing()), search):
        print(line)


if __name__ == "__main__":
    command_line.start(main, after_interrupt="run it again, with --overwrite if files lie there already")
