"""Trainings side by side: order, errors, kills, messages; and the same numbers as one after another."""

import logging
import os
import signal
import time

import pytest
import torch
from helpers import alive, exit_code, forked, wait_until

from dtsf.errors import ConfigError, DtsfError
from dtsf.training.parallel import side_by_side, usable_workers


def work(k):
    def job(report):
        report(("half", k))
        if k == 2:
            raise ConfigError("wrong value, file: next command")
        return torch.full((3,), float(k)), os.getpid()

    return job


@pytest.mark.parametrize("workers", [1, 2, 9])
def test_side_by_side__yields_every_result_and_report(workers):
    seen = []
    results = dict(side_by_side([work(k) for k in (0, 1, 3, 4)], workers=workers, on_report=lambda *words: seen.append(words)))
    assert {k: x.tolist() for k, (x, _) in results.items()} == {k: [k + (k > 1)] * 3 for k in range(4)}
    assert sorted(seen) == [(k, ("half", k + (k > 1))) for k in range(4)]
    processes = {pid for _, pid in results.values()}
    assert processes == {os.getpid()} if workers == 1 else len(processes) == 4 and os.getpid() not in processes


@pytest.mark.parametrize("workers", [1, 2])
def test_side_by_side__raises_the_error_of_a_job_and_ends_the_others(workers, tmp_path):
    def long(_):
        (tmp_path / "pid").write_text(str(os.getpid()))
        time.sleep(0 if workers == 1 else 60)

    def late(report):
        wait_until((tmp_path / "pid").is_file)
        return work(2)(report)

    with pytest.raises(ConfigError, match="wrong value, file: next command"):
        list(side_by_side([long, late, work(0)], workers=workers))
    assert workers == 1 or not alive(int((tmp_path / "pid").read_text()))


def test_side_by_side__tells_where_an_unexpected_error_came_from():
    class Local(Exception):
        """It cannot be pickled."""

    def wrong(_):
        return {}["absent"]

    def strange(_):
        raise Local("here")

    with pytest.raises(KeyError) as error:
        list(side_by_side([wrong, work(0)], workers=2))
    assert "in wrong" in "".join(error.value.__notes__)
    with pytest.raises(RuntimeError, match="Local: here"):
        list(side_by_side([strange, work(0)], workers=2))


def test_side_by_side__names_the_signal_that_ended_a_job():
    with pytest.raises(DtsfError, match=r"SIGKILL; perhaps the memory was full: .*--resume"):
        list(side_by_side([lambda _: os.kill(os.getpid(), signal.SIGKILL), work(0)], workers=2))


def test_side_by_side__no_job_outlives_its_parent(tmp_path):
    def wait(_):
        (tmp_path / f"{os.getpid()}.pid").touch()
        time.sleep(60)

    parent = forked(lambda: list(side_by_side([wait, wait], workers=2)))
    wait_until(lambda: len(list(tmp_path.glob("*.pid"))) == 2)
    os.kill(parent, signal.SIGKILL)
    assert exit_code(parent) == -signal.SIGKILL
    wait_until(lambda: not any(alive(int(file.stem)) for file in tmp_path.glob("*.pid")))


def test_side_by_side__leaving_the_iteration_ends_the_jobs(tmp_path):
    def wait(_):
        (tmp_path / "pid").write_text(str(os.getpid()))
        time.sleep(60)

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(side_by_side([wait, lambda report: wait_until((tmp_path / "pid").is_file) or report(0)], workers=2, on_report=stop))
    assert not alive(int((tmp_path / "pid").read_text()))


def test_side_by_side__passes_log_records_on(caplog):
    def speak(_):
        logging.getLogger("dtsf.training.loop").info("epoch %d", 7)

    with caplog.at_level(logging.INFO):
        list(side_by_side([speak, work(0)], workers=2))
    assert caplog.messages == ["epoch 7"]


def test_usable_workers__is_one_in_a_job_and_for_trainings_of_several_threads():
    def nested(_):
        return usable_workers(5), torch.get_num_threads()

    assert usable_workers(5, wanted=3) == 3
    assert usable_workers(2, wanted=3) == 2
    assert usable_workers(0) == 1
    assert usable_workers(5, wanted=3, threads=2) == 1
    assert dict(side_by_side([nested, nested], workers=2)) == {0: (1, 1), 1: (1, 1)}
