"""One of two processes of a small training, each with half of the batch and two devices; process 0 writes the result.

Arguments: the coordinator's port, this process's index, and a directory.
"""

import sys
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from pidiff_jax.checkpoint.manager import CheckpointManager
from pidiff_jax.sharding.mesh import make_mesh
from pidiff_jax.sharding.rules import shard_batch
from pidiff_jax.train.step import compile_train_step, make_train_step
from tests.train.tiny_training import LOSS_WEIGHTS, loss_fn, make_batch, start


def main(port: int, index: int, directory: Path) -> None:
    jax.config.update("jax_num_cpu_devices", 2)
    jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=index)
    mesh = make_mesh({"data": 2, "fsdp": 2})
    state, frozen, optimizer = start(mesh)
    train_step = make_train_step(loss_fn, optimizer, loss_weights=LOSS_WEIGHTS, ema_decay=0.9, seed=3)
    mine = [{k: x[4 * index : 4 * index + 4] for k, x in make_batch(step).items()} for step in range(4)]
    compiled = compile_train_step(train_step, state, frozen, mine[0], mesh)
    with CheckpointManager(directory / "checkpoints", config={}, frozen={}, save_every_steps=2) as checkpoints:
        for step in range(2):
            state, _ = compiled(state, frozen, shard_batch(mine[step], mesh))
        checkpoints.save(state, f"position of {index}".encode())
        checkpoints.wait()
        restored = checkpoints.restore_latest(state)
    assert restored.data_state == f"position of {index}".encode()
    state = restored.state
    for step in range(2, 4):
        state, _ = compiled(state, frozen, shard_batch(mine[step], mesh))
    leaves = jax.tree_util.tree_leaves_with_path(multihost_utils.process_allgather(state.trainable, tiled=True))
    if index == 0:
        np.savez(directory / "end.npz", **{jax.tree_util.keystr(path): np.asarray(x) for path, x in leaves})


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
