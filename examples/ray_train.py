"""A feed-forward net trained by Ray's TorchTrainer over two workers: every mini-batch has rows of both.

Ray starts the workers and their torch.distributed process group; ``fit(spread=...)`` does the rest. Batch norm's
statistics are those of the whole mini-batch, and both workers end with the same net.

    pip install "ray[train]"
    python examples/ray_train.py

Here Ray gives its node, and with it torch's process group, an address of the loopback interface. Ray's own servers
listen on all interfaces, whatever the address, and ask for the token that it makes: see its documentation on security.
"""

from __future__ import annotations

import tempfile
from typing import Any

import ray
from ray.train import RunConfig, ScalingConfig, get_context, report
from ray.train.torch import TorchTrainer
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from wholebatch import FeedForward, Optimizer, Spread, Training
from wholebatch.feedforward import State
from wholebatch.feedforward.sharding import shard_bounds

WORKERS = 2


def train(config: dict[str, Any]) -> None:
    """What every worker does: take its share of the rows, and train with the others."""
    rank, workers = get_context().get_world_rank(), get_context().get_world_size()
    x, y = load_digits(return_X_y=True)
    x, x_held, y, y_held = train_test_split(x / 16, y, test_size=0.2, random_state=0)
    own, held = (slice(*shard_bounds(len(rows), workers)[rank : rank + 2]) for rows in (y, y_held))

    def tell(state: State) -> None:
        row = state.history.epochs[-1]
        report({name: row[name] for name in ("epoch", "loss", "validation_score")})

    net = FeedForward(64, (100, 100), 10)  # rank 0's first parameters are everyone's
    history = net.fit(
        x[own],
        y[own],
        validation=(x_held[held], y_held[held]),
        optimizer=Optimizer("adam", config["learning_rate"]),
        training=Training(epochs=config["epochs"], batch_size=128),
        spread=Spread(),
        after_epoch=tell,
    )
    row = history.epochs[-1]
    weight = sum(float(parameter.detach().double().sum()) for parameter in net.parameters())
    print(
        f"rank {rank} of {workers}: {len(y[own])} of {len(y)} rows, validation score {row['validation_score']:.4f}, "
        f"the sum of all parameters is {weight!r}"
    )


def main() -> None:
    """Two workers on this machine, without Ray's dashboard."""
    ray.init(address="local", num_cpus=WORKERS, include_dashboard=False, _node_ip_address="127.0.0.2")
    with tempfile.TemporaryDirectory() as folder:
        trainer = TorchTrainer(
            train,
            train_loop_config={"learning_rate": 0.003, "epochs": 5},
            scaling_config=ScalingConfig(num_workers=WORKERS, resources_per_worker={"CPU": 1}),
            run_config=RunConfig(name="digits", storage_path=folder),
        )
        trainer.fit()


if __name__ == "__main__":
    main()
