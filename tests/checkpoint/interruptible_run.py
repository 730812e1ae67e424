"""A small run in a process of its own, which can kill itself while a checkpoint is being written.

dies_at: the step after whose save it does (0: never). when: `early` or `late`, before the files can be complete, or after.
output: a file for the final parameters.
"""

import os
import signal

import jax
import numpy as np

from pidiff_jax.checkpoint.fingerprint import fingerprint
from pidiff_jax.checkpoint.manager import CheckpointManager
from pidiff_jax.sharding.mesh import make_mesh
from pidiff_jax.sharding.rules import from_first_process, shard_batch
from pidiff_jax.train.step import compile_train_step, make_train_step
from tests.train.tiny_training import LOSS_WEIGHTS, loss_fn, make_batch, start


def main(directory: str, num_steps: int, num_devices: int, dies_at: int, when: str, output: str) -> None:
    jax.config.update("jax_num_cpu_devices", num_devices)
    mesh = make_mesh({"data": -1, "fsdp": 2 if num_devices > 1 else 1})
    state, frozen, optimizer = start(mesh)
    train_step = make_train_step(loss_fn, optimizer, loss_weights=LOSS_WEIGHTS, ema_decay=0.9, seed=3)
    step = compile_train_step(train_step, state, frozen, make_batch(0), mesh)
    due_step = from_first_process(0.0, mesh)
    frozen_prints = {"base": fingerprint(frozen)}
    with CheckpointManager(directory, config={}, frozen=frozen_prints, save_every_steps=2) as checkpoints:
        position = 0
        if (restored := checkpoints.restore_latest(state)) is not None:
            state, position = restored.state, int(restored.data_state)
            print("resumed", restored.step, flush=True)
        for finished in range(int(state.step) + 1, num_steps + 1):
            state, _ = step(state, frozen, shard_batch(make_batch(position), mesh), due_step)
            position += 3  # not the step: the position must come from the checkpoint
            if checkpoints.should_save(finished):
                checkpoints.save(state, str(position).encode())
                if finished == dies_at:
                    if when == "late":
                        checkpoints.wait()
                        step(state, frozen, shard_batch(make_batch(position), mesh), due_step)
                    os.kill(os.getpid(), signal.SIGKILL)
    leaves = jax.tree_util.tree_leaves_with_path((state.trainable, state.ema, state.opt_state))
    np.savez(output, **{jax.tree_util.keystr(path): np.asarray(x) for path, x in leaves})
