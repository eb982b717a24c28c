"""Two hosts, which are two network namespaces of this one, and a cable between them that is cut in mid-run."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from forks import server
from launched import LONG, begin_here, draw, options, result
from test_processes_faults import pytestmark as pytestmark
from test_processes_faults import undisturbed as undisturbed
from wholebatch.commands.asked import Asked
from wholebatch.commands.train import ask

NEW_NETWORK = 0x40000000  # setns(2)
PORT = 29517
TIMEOUT = 5.0
PATIENT = 3 * LONG  # seconds: torch's agents take their time to find each other again


@pytest.fixture
def hosts() -> Iterator[list[str]]:
    """The namespaces; the interface ``cable`` of the first has the address 10.77.0.1, that of the second 10.77.0.2."""
    names = [f"wholebatch-{os.getpid()}-{number}" for number in (1, 2)]
    try:
        for name in names:
            run("ip", "netns", "add", name)
        run("ip", "link", "add", "cable", "netns", names[0], "type", "veth", "peer", "name", "cable", "netns", names[1])
        for number, name in enumerate(names, 1):
            run("ip", "-n", name, "address", "add", f"10.77.0.{number}/24", "dev", "cable")
            for device in ("lo", "cable"):
                run("ip", "-n", name, "link", "set", device, "up")
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"network namespaces cannot be made here: {getattr(error, 'stderr', None) or error}")
    try:
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False)


@pytest.mark.timeout(900)
def test_a_cable_that_is_cut(undisturbed: Path, tmp_path: Path, hosts: list[str]):
    """The ranks stop while it is cut, and say why; torch's agents start them again when it is whole."""
    out, moment = tmp_path / "run", draw("moment", 2, 30)
    agents = []
    try:
        for number, host in enumerate(hosts, 1):
            folder = tmp_path / f"host{number}"
            folder.mkdir()
            agent = server().Process(target=be_agent, args=(folder, host, number, undisturbed, out))
            agent.start()
            agents.append(agent)
        wait_for(lambda: epochs(out) >= moment, agents)
        run("ip", "-n", hosts[0], "link", "set", "cable", "down")
        wait_for(lambda: len(list(tmp_path.glob("host*/ending*"))) == 2, agents)
        kept = epochs(out)
        run("ip", "-n", hosts[0], "link", "set", "cable", "up")
        for agent in agents:
            agent.join(PATIENT)
            assert agent.exitcode == 0, told(tmp_path)
    finally:
        for agent in agents:
            agent.kill()
            agent.join()
    assert kept < 40
    # While the cable was cut; it may take the ranks more than one start to find each other again.
    said = [ending.read_text() for ending in sorted(tmp_path.glob("host*/ending?.0"))]
    assert len(said) == 2
    for text in said:
        assert re.match(r"absence: (training over|messages between) ranks stopped at ", text), text
        assert re.search(rf"did not come within {TIMEOUT} s|a connection was lost|process \d+ is gone", text), text
    assert "no answer within" in "".join(said), said  # of the store, on the other side of the cut
    assert result(out) == result(undisturbed / "run")


def be_agent(folder: Path, host: str, number: int, table: Path, out: Path) -> None:
    """torchrun's agent on one of two hosts, with one rank; a function in place of a command, which would import."""
    begin_here(folder)
    enter(host)
    # A store for each start of the ranks. The one that torch's agents share has the keys of starts before: of those
    # that a lost agent caused, which torch does not count, the next finds addresses where nobody listens any more.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=2,
        max_nodes=2,
        nproc_per_node=1,
        run_id="cut",
        rdzv_backend="c10d",
        rdzv_endpoint=f"10.77.0.1:{PORT}",
        rdzv_configs={"is_host": number == 1},
        local_addr=f"10.77.0.{number}",
        max_restarts=3,
        start_method="forkserver",
        logs_specs=DefaultLogsSpecs(log_dir=str(folder)),
    )
    asked = ask([*options(table, 2)[1:], "--out", str(out), "--timeout", str(TIMEOUT)])
    elastic_launch(config, be_rank)(folder, (host, asked))


def be_rank(folder: Path, given: tuple[str, Asked]) -> None:
    host, asked = given
    enter(host)
    os.environ |= {"GLOO_SOCKET_IFNAME": "cable", "WHOLEBATCH_TRANSPORT": "gloo"}
    from wholebatch.commands.rank import leave, take_part

    ending = take_part(asked)
    if ending is not None:
        name = f"ending{os.environ['RANK']}.{os.environ['TORCHELASTIC_RESTART_COUNT']}"
        (folder / name).write_text(f"{ending.kind}: {ending.details}")
        leave(ending.code)


def enter(host: str) -> None:
    """Let this process, which has one thread, be on a host."""
    with Path(f"/run/netns/{host}").open() as file:
        if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), NEW_NETWORK):
            raise OSError(ctypes.get_errno(), "setns")


def epochs(out: Path) -> int:
    metrics = out / "metrics.jsonl"
    return metrics.read_text().count("\n") if metrics.exists() else 0


def wait_for(condition: Callable[[], bool], agents: list[BaseProcess]) -> None:
    deadline = time.monotonic() + PATIENT
    while not condition():
        assert all(agent.is_alive() for agent in agents)
        assert time.monotonic() < deadline
        time.sleep(0.002)


def told(folder: Path) -> str:
    return "\n".join(file.read_text() for file in folder.glob("host*/std*"))


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)
