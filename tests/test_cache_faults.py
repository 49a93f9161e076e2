"""Faults at each write, fsync and rename of a commit: shards stay complete, and the repeated run restores every byte."""

import contextlib
import errno
import os
import signal
import tempfile
from pathlib import Path

import make_cache
import pytest
from helpers import MEMORY, exit_code, forked
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from make_cache import FORMS, SHARD_SIZE, create, make, names, rows, snapshot, write_full

from dtsf.cache import documents
from dtsf.cache.check import repair, verify
from dtsf.cache.documents import open_handle, read_records, record_name, shard_numbers
from dtsf.cache.reader import open_cached, open_dataset
from dtsf.cache.store import open_store
from dtsf.cache.writer import extend, sweep
from dtsf.errors import CacheError
from dtsf.files import write as commit

SHARDS = 2
STEPS = ("write_part", "fsync", "rename")


def work(folder, form):
    """Do the cache steps of preprocess: make or open, sweep, extend, commit the missing shards."""
    dataset = create(folder, form)
    sweep(dataset)
    make_cache.list_waiting(folder, SHARDS)
    extend(dataset, SHARDS)
    for shard in range(SHARDS):
        if shard not in shard_numbers(dataset):
            write_full(folder, shard)


def hooked(patch, hook):
    """Call ``hook(step, number, when, arguments)`` before and after each step of the protocol."""
    count = iter(range(10_000))

    def wrap(step, original):
        def call(*arguments):
            number = next(count)
            replaced = hook(step, number, "before", arguments)
            result = original(*(arguments if replaced is None else replaced))
            hook(step, number, "after", arguments)
            return result

        return call

    for step in STEPS:
        patch.setattr(commit, step, wrap(step, getattr(commit, step)))


@pytest.fixture
def quick():
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        yield Path(folder)


def trace(folder, form):
    """Return all steps of an undisturbed run, and its bytes."""
    steps = []
    with pytest.MonkeyPatch.context() as patch:
        hooked(patch, lambda step, number, when, given: steps.append((step, given)) if when == "before" else None)
        work(folder, form)
    return steps, snapshot(folder)


def assert_goes_on(folder, form, undisturbed):
    """After a fault, committed shards are complete and others invisible. The repeated work leaves the undisturbed bytes."""
    if documents.is_dataset(open_store(folder)):
        found = verify(folder, deep=True)
        assert found.ok, found.damaged
        data = open_cached(folder)
        for shard in read_records(open_handle(folder)):
            for array, expected in rows(SHARD_SIZE, seed=shard.shard).items():
                assert (data.gather(array, names(shard.shard)) == expected).all()
    work(folder, form)
    assert snapshot(folder) == undisturbed, folder


def killed(step, moment, action):
    """Run ``action`` in a child process that kills itself at a step. Return True if it was killed."""

    def die(_, number, when, __):
        if (number, when) == (step, moment):
            os.kill(os.getpid(), signal.SIGKILL)

    def work_until_then():
        hooked(pytest.MonkeyPatch(), die)
        action()

    return exit_code(forked(work_until_then)) == -signal.SIGKILL


@pytest.mark.parametrize("form", FORMS[:2])
def test_write_shard__flushes_data_before_its_name_and_the_record_last(quick, form):
    steps, _ = trace(quick / "a", form)
    kinds = [step for step, _ in steps]
    (made,) = [k for k, (step, given) in enumerate(steps) if step == "rename" and given[1] == quick / "a"]
    del kinds[made : made + 2]
    assert kinds == ["write_part", "fsync", "rename", "fsync"] * (len(kinds) // 4)
    renamed = [str(given[1].relative_to(quick)) for step, given in steps if step == "rename"]
    for shard in range(SHARDS):
        record = read_records(open_handle(quick / "a"))[shard]
        committed = renamed.index(f"a/{record_name(shard)}")
        assert all(renamed.index(f"a/{name}") < committed for name in record.files)


@pytest.mark.parametrize("form", FORMS[:2])
def test_commit__killed_at_every_step_and_run_again(quick, form):
    steps, undisturbed = trace(quick / "whole/a", form)
    # After a step the files are as before the next one.
    for number, moment in [*((k, "before") for k in range(len(steps))), (len(steps) - 1, "after")]:
        folder = quick / f"{number}-{moment}/a"
        folder.parent.mkdir()
        assert killed(number, moment, lambda folder=folder: work(folder, form))
        assert_goes_on(folder, form, undisturbed)
        assert [path.name for path in folder.parent.iterdir()] == ["a"]


def assert_goes_on_after(hook, message, folder, form, undisturbed):
    folder.parent.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        hooked(patch, hook)
        with pytest.raises(CacheError, match=message) if message else contextlib.nullcontext():
            work(folder, form)
    assert_goes_on(folder, form, undisturbed)


@pytest.mark.parametrize(
    ("form", "fault", "moment"),
    [
        (FORMS[0], errno.ENOSPC, "before"),
        (FORMS[1], errno.EIO, "after"),
        *(pytest.param(form, errno.ENOSPC, "after", marks=pytest.mark.slow) for form in FORMS[:2]),
        *(pytest.param(form, errno.EIO, "before", marks=pytest.mark.slow) for form in FORMS[:2]),
    ],
)
def test_commit__refused_at_every_step_and_run_again(quick, form, fault, moment):
    steps, undisturbed = trace(quick / "whole/a", form)
    for at in range(len(steps)):

        def refuse(_, number, when, __, at=at):
            if (number, when) == (at, moment):
                raise OSError(fault, os.strerror(fault))

        message = rf"{os.strerror(fault)}.*run the\s+same command"
        assert_goes_on_after(refuse, message, quick / f"{at}/a", form, undisturbed)


@pytest.mark.parametrize("form", FORMS[:2])
@pytest.mark.parametrize("full", [False, True])
def test_commit__short_writes(quick, form, full):
    steps, undisturbed = trace(quick / "whole/a", form)
    for at in [number for number, (step, _) in enumerate(steps) if step == "write_part"]:
        cut = []

        def shorten(_, number, when, given, at=at, cut=cut):
            if (number, when) == (at, "before"):
                cut.append(number)
                return given[0], given[1][: len(given[1]) // 2]
            if full and (number, when) == (at + 1, "before"):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return None

        assert_goes_on_after(shorten, "No space left" if full else "", quick / f"{at}/a", form, undisturbed)
        assert cut


@pytest.mark.parametrize("form", FORMS[:2])
def test_write_shard__one_of_two_writers_wins_each_shard(quick, form):
    folder = quick / "a"
    create(folder, form)
    start, go = os.pipe()

    def write(writer):
        os.read(start, 1)
        make_cache.race(folder, writer, 12)

    children = [forked(lambda writer=writer: write(writer)) for writer in (0, 1)]
    os.write(go, b"xx")
    assert [exit_code(child) for child in children] == [0, 0]
    make_cache.list_all(folder)
    assert verify(folder, deep=True).ok
    assert set(make_cache.winners(open_cached(folder), 12)) == {0, 1}
    assert not list(folder.rglob(f"{commit.TEMPORARY}*"))


def test_write_shard__returns_the_first_writers_record(quick):
    folder = quick / "a"
    create(folder)
    first, _ = make_cache.add_shard(folder, 0, names(0), seed=1)
    before = snapshot(folder)
    second, _ = make_cache.add_shard(folder, 0, names(0)[:1], seed=2)
    assert second == first
    assert snapshot(folder) == before


class CacheMachine(RuleBasedStateMachine):
    """Add, crash, resume, verify, damage and repair in any order: committed shards stay readable."""

    def __init__(self):
        super().__init__()
        self.temporary = tempfile.TemporaryDirectory(dir=MEMORY)
        self.folder = Path(self.temporary.name) / "a"
        self.committed = {}
        self.damaged = set()

    @initialize(form=st.sampled_from(FORMS))
    def begin(self, form):
        self.form = form
        create(self.folder, form)
        make_cache.list_waiting(self.folder, 6)

    def teardown(self):
        self.temporary.cleanup()

    def write(self, shard):
        extend(open_handle(self.folder), shard + 1)
        write_full(self.folder, shard)

    @rule(shard=st.integers(0, 5))
    def add(self, shard):
        with contextlib.suppress(CacheError) if shard in self.damaged else contextlib.nullcontext():
            self.write(shard)
            self.committed[shard] = names(shard)

    @rule(shard=st.integers(0, 5), step=st.integers(0, 40), moment=st.sampled_from(["before", "after"]))
    def crash(self, shard, step, moment):
        if shard in self.damaged:
            return
        killed(step, moment, lambda: self.write(shard))
        if shard in shard_numbers(open_handle(self.folder)):
            self.committed[shard] = names(shard)

    @rule()
    def resume(self):
        sweep(open_handle(self.folder))
        assert not list(self.folder.rglob(f"{commit.TEMPORARY}*"))

    @precondition(lambda self: set(self.committed) - self.damaged)
    @rule(data=st.data())
    def damage(self, data):
        shard = data.draw(st.sampled_from(sorted(set(self.committed) - self.damaged)))
        record = documents.read_record(open_handle(self.folder), shard)
        name = data.draw(st.sampled_from([record_name(shard), *sorted(record.files)]))
        path = self.folder / name
        content = bytearray(path.read_bytes())
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
        path.write_bytes(content)
        self.damaged.add(shard)

    @rule()
    def check(self):
        found = verify(self.folder, deep=True)
        assert {d.shard for d in found.damaged} == self.damaged
        assert found.ok == (not self.damaged)

    @rule()
    def mend(self):
        repair(self.folder)
        for shard in self.damaged:
            del self.committed[shard]
        self.damaged = set()
        assert verify(self.folder, deep=True).ok

    @invariant()
    def committed_shards_read_back(self):
        if not hasattr(self, "form") or self.damaged:
            return
        data = open_cached(self.folder)
        assert set(data.shards) == set(self.committed)
        for shard, ids in self.committed.items():
            for array, expected in rows(SHARD_SIZE, seed=shard).items():
                assert (data.gather(array, ids) == expected).all()


TestCacheMachine = CacheMachine.TestCase
TestCacheMachine.settings = settings(max_examples=25, stateful_step_count=15, deadline=None)


@pytest.mark.parametrize("form", FORMS)
def test_repair__marks_only_damaged_shards_and_redoing_restores_every_byte(quick, form):
    folder = quick / "a"
    make(folder, *form)
    undisturbed = snapshot(folder)
    record = read_records(open_handle(folder))[1]
    victim = folder / sorted(record.files)[0]
    victim.write_bytes(victim.read_bytes()[:-1])
    found, done = repair(folder)
    assert [(d.shard, d.file) for d in found.damaged] == [(1, sorted(record.files)[0])]
    assert len(done) == 1
    assert [mark.shard for mark in documents.read_tombstones(open_handle(folder))] == [1]
    changed = {name for name, data in undisturbed.items() if snapshot(folder).get(name) != data}
    assert changed == {record_name(1), *record.files, "catalog.json"}
    assert "1-0" not in open_cached(folder).records
    assert {one.clip.id: one.status for one in open_cached(folder).bad} == dict.fromkeys(names(1), "waiting")
    write_full(folder, 1)
    assert len(open_cached(folder).clips) == 3 * SHARD_SIZE
    make_cache.list_clips(folder, open_cached(folder).clips, make_cache.info())
    assert snapshot(folder) == undisturbed
    assert repair(folder)[1] == []


def test_repair__another_row_of_the_same_content_takes_the_place_of_a_lost_one(quick):
    folder = quick / "a"
    values = make(folder, shards=2)
    make_cache.add_shard(folder, 2, ["0-1"], seed=7)
    (folder / "embeddings/c/2/0/0/0").write_bytes(b"")
    repair(folder)
    data = open_cached(folder)
    assert (data.embeddings(["0-1"]) == values["0-1"]["embeddings"]).all()
    assert not data.bad


@pytest.mark.parametrize(
    ("form", "name"),
    [(form, name) for form in FORMS for name in ("dtsf.json", "published.json")]
    + [(form, name) for form in FORMS[::2] for name in ("zarr.json", "embeddings/zarr.json")]
    + [(form, "dataset.h5") for form in FORMS[1::2]],
)
def test_repair__restores_metadata_and_published_files(quick, form, name):
    folder = quick / "a"
    values = make(folder, *form)
    whole = snapshot(folder)
    data = whole[name]
    for changed in (data[:-5], data[:100] + bytes([data[100] ^ 1]) + data[101:], None):
        (folder / name).unlink() if changed is None else (folder / name).write_bytes(changed)
        found = verify(folder)
        assert not found.ok
        assert (found.damaged[0].shard, found.damaged[0].file) == (None, name)
        if name == "dtsf.json" and changed:
            with pytest.raises(CacheError, match="dtsf.json is damaged"):
                open_dataset(quick)
            assert documents.is_dataset(open_store(folder))
        if name == "dtsf.json" and form[0] == "hdf5":
            with pytest.raises(CacheError, match="--overwrite"):
                repair(folder)
            return
        repair(folder)
        assert verify(folder, deep=True).ok
        after = snapshot(folder)
        assert after.pop(name) == whole[name] or name == "published.json"
        assert set(open_cached(folder).records) == set(values)


def test_repair__removes_a_damaged_tombstone(quick):
    folder = quick / "a"
    make(folder, shards=2)
    (folder / "embeddings/c/0/0/0/0").write_bytes(b"")
    repair(folder)
    mark = folder / "shards/00000.damaged"
    mark.write_bytes(mark.read_bytes()[:-20])
    with pytest.raises(CacheError, match="repair"):
        open_cached(folder)
    assert [(d.shard, d.file) for d in verify(folder).damaged] == [(0, "shards/00000.damaged")]
    repair(folder)
    assert verify(folder, deep=True).ok
    assert set(open_cached(folder).shards) == {1}
