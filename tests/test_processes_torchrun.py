"""torch's own agent, as torchrun has it: its store still has what ranks put there before they were started again."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from forks import server
from launched import LONG, begin_here, draw, options, result
from test_processes_faults import pytestmark as pytestmark
from test_processes_faults import undisturbed as undisturbed
from test_processes_network import epochs, told, wait_for
from wholebatch.commands.asked import Asked
from wholebatch.commands.train import ask


def test_a_rank_that_is_killed_under_torchrun(undisturbed: Path, tmp_path: Path):
    """The agent ends the other, if that was not quicker, and the next ranks end as if nothing had happened."""
    # From outside: a thread of the rank may get its turn only when the training is over.
    moment, doomed = draw("moment", 2, 25), tmp_path / "rank1"
    agent = server().Process(target=be_agent, args=(tmp_path, undisturbed))
    agent.start()
    try:
        wait_for(lambda: epochs(tmp_path / "run") >= moment, [agent])
        os.kill(int(doomed.read_text()), signal.SIGKILL)
        agent.join(LONG)
        assert agent.exitcode == 0, told(tmp_path)
    finally:
        agent.kill()
        agent.join()
    endings = {ending.name: ending.read_text() for ending in tmp_path.glob("host/ending*")}
    assert list(endings) == ["ending0.0"], endings
    assert endings["ending0.0"].partition(":")[0] in ("interrupted", "absence"), endings
    assert result(tmp_path / "run") == result(undisturbed / "run")


def be_agent(folder: Path, table: Path) -> None:
    (folder / "host").mkdir()
    begin_here(folder / "host")
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=2,
        run_id="again",
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=1,
        start_method="forkserver",
        logs_specs=DefaultLogsSpecs(log_dir=str(folder)),
    )
    asked = ask([*options(table, 2)[1:], "--out", str(folder / "run")])
    elastic_launch(config, be_rank)(folder, asked)


def be_rank(folder: Path, asked: Asked) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    start = os.environ["TORCHELASTIC_RESTART_COUNT"]
    if os.environ["RANK"] == "1" and start == "0":
        (folder / "rank1").write_text(str(os.getpid()))
    from wholebatch.commands.rank import leave, take_part

    ending = take_part(asked)
    if ending is not None:
        (folder / "host" / f"ending{os.environ['RANK']}.{start}").write_text(f"{ending.kind}: {ending.details}")
        leave(ending.code)
