"""A config file is run once, and values of the command line have the types of the file's."""

import pytest

from launch.experiment_file import load_config, override
from tests.launch.commands import call_script

CONFIG = """
from pathlib import Path
from ml_collections import ConfigDict, FieldReference
from ml_collections.config_dict import placeholder

with open(Path(__file__).with_name("loads"), "a", encoding="utf-8") as file:
    file.write("once ")

def get_config(part="small"):
    return ConfigDict({
        "part": part, "count": 3, "rate": 0.5, "flip": True, "ranges": ((0, 1), (1, 4)), "names": ["a", "b"],
        "weight": FieldReference(0.03), "cache": placeholder(str), "seconds": placeholder(float),
        "inner": {"most": {"deep": 1}, "width": FieldReference(2)},
    })
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "config.py"
    path.write_text(CONFIG, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("count", "-7", -7),
        ("rate", "1e-3", 1e-3),
        ("rate", "2", 2.0),
        ("flip", "false", False),
        ("flip", "True", True),
        ("flip", "0", False),
        ("part", "None", "None"),
        ("part", "a=b", "a=b"),
        ("part", "", ""),
        ("ranges", "((0, 2), (2, 4))", ((0, 2), (2, 4))),
        ("ranges", "1,2", (1, 2)),
        ("ranges", "[1]", (1,)),
        ("ranges", "5", (5,)),
        ("names", "['c']", ["c"]),
        ("weight", "1", 1.0),
        ("weight", "None", None),
        ("cache", "folder", "folder"),
        ("cache", "None", None),
        ("seconds", "285", 285.0),
        ("inner.most.deep", "4", 4),
        ("inner.width", "None", None),
    ],
)
def test_a_text_becomes_a_value_of_the_type_that_the_key_has(file, key, text, value):
    config = load_config(str(file))
    override(config, key, text)
    for name in key.split("."):
        config = config[name]
    assert config == value and type(config) is type(value)


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        ("count", "1.0", "expected a value like 3 for --config.count, got '1.0'; correct it"),
        ("count", "None", "expected a value like 3 for --config.count, got 'None'"),
        ("flip", "maybe", "expected a value like True for --config.flip, got 'maybe'"),
        ("ranges", "(0, 1", "expected a value like ((0, 1), (1, 4)) for --config.ranges, got '(0, 1'"),
        ("ranges", "os.getcwd()", "for --config.ranges, got 'os.getcwd()'"),
        ("ranges[0]", "5", "unknown config key 'ranges[0]'; did you mean 'ranges'?"),
        ("seconds", "long", "expected a value of type float, or None, for --config.seconds, got 'long'"),
        ("inner.most", "4", "for all of --config.inner.most; set --config.inner.most.deep"),
        ("count", None, "expected --config.count=VALUE, got no '='; write --config.count=3"),
        ("innr.width", "4", "unknown config key 'innr.width'; did you mean 'inner.width'?"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_would(file, key, text, expected):
    with pytest.raises(ValueError) as error:
        override(load_config(str(file)), key, text)
    assert expected in str(error.value)


def test_the_file_is_run_once_by_a_command(file, tmp_path):
    script = """
from launch import command_line
CONFIG = command_line.define_config()
command_line.start(lambda: print(CONFIG.value.part, CONFIG.value.count), config=CONFIG, after_interrupt="")
"""
    result = call_script(script, "-config.count=5", "--config", f"{file}:large", "--config.count=6")
    assert result.stderr == "" and result.stdout == "large 6\n"
    assert (tmp_path / "loads").read_text(encoding="utf-8") == "once "


def test_a_file_with_no_config_in_it_is_refused(tmp_path):
    file = tmp_path / "config.py"
    for content, expected in [
        ("", "got none; see experiments/"),
        ("def get_config():\n    return {}", "got dict; see experiments/"),
        ("def get_config(:", "got SyntaxError"),
        ("import not_a_module", "got ModuleNotFoundError: No module named 'not_a_module'; correct the file"),
        ("def get_config():\n    raise ValueError('expected a, got b')", "expected a, got b"),
    ]:
        file.write_text(content, encoding="utf-8")
        with pytest.raises(ValueError) as error:
            load_config(str(file))
        assert expected in str(error.value)
    file.write_text("def get_config():\n    return 1", encoding="utf-8")
    with pytest.raises(ValueError, match="without a part, as its get_config takes none, got 'part'; leave it out"):
        load_config(f"{file}:part")


def test_the_config_takes_no_new_keys(file):
    with pytest.raises(AttributeError):
        load_config(str(file)).countt = 1
