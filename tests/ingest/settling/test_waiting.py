"""The waiting set: what is looked at when, what asks for a scan, and what people are told of it."""

from msgspec.structs import replace

from agents.ingest.scanning.events import MANY, Events
from agents.ingest.scanning.reconcile import Row
from agents.ingest.scanning.scan import Candidate, Scan, ScanProblem
from agents.ingest.settling import gate, waiting
from agents.ingest.settling.verdicts import Judged
from agents.ingest.settling.waiting import Actions, Observation, State
from schemas.files import FilePath, Stat

STAT = Stat(dev=1, ino=2, size=3, mtime_ns=4, ctime_ns=5)
NOTHING, SCAN, JUDGE = Actions(), Actions(scan=True), Actions(judge=True)


def row(id: int, rel: str = "", version: int = 1) -> Row:
    path = FilePath(root="models", rel=rel or f"{id}.ckpt")
    return Row(id=id, path=path, key="k", stat=STAT, links=1, version=version)


def after(*seen: Observation, state: State | None = None, now: float = 100.0) -> State:
    state = state or State()
    for one in seen:
        state, _ = waiting.step(state, one, now)
    return state


def actions(state: State, seen: Observation, now: float = 100.0) -> Actions:
    return waiting.step(state, seen, now)[1]


def noticed(*rels: str, **others: bool | frozenset[str]) -> waiting.Noticed:
    return waiting.Noticed("models", Events(rels=frozenset(rels), **others))  # type: ignore[arg-type]


def looked(id: int, verdict: gate.Verdict, *overtaken: int) -> waiting.Looked:
    seen = gate.Observation(at=100.0, nature="file", stat=STAT)
    track = gate.Track(latest=seen, since=100.0, same_since=100.0)
    return waiting.Looked([Judged(row=row(id), track=track, verdict=verdict)], overtaken, 60.0)


def listed(*ids: int) -> State:
    return after(waiting.Listing(), waiting.Listed([row(id) for id in ids]))


def scanned(*rels: str, changes: int = 0, left: int = 0, problems: tuple[ScanProblem, ...] = ()) -> waiting.Scanned:
    candidates = {rel: Candidate(rel, STAT, 1) for rel in rels}
    return waiting.Scanned(
        [Scan(root="models", state="present", candidates=candidates, problems=problems)], changes, left
    )


WAIT = gate.Wait(until=130.0, why="it must hold still")


def test_what_was_listed_is_looked_at_at_once_and_then_when_the_gate_says_so() -> None:
    state = listed(1, 2)
    assert [one.id for one in waiting.due(state, 100.0)] == [1, 2] and not state.stale
    state = after(looked(1, WAIT), state=state)
    assert [one.id for one in waiting.due(state, 100.0)] == [2] and waiting.next_due(state) == 0.0
    state = after(looked(2, gate.Admit(proof="complete")), state=state)
    assert waiting.due(state, 129.9) == [] and waiting.next_due(state) == 130.0
    assert [one.id for one in waiting.due(state, 130.0)] == [1]
    assert waiting.next_due(State()) == float("inf")


def test_an_event_brings_the_next_look_forward_and_one_that_is_soon_anyway_is_left() -> None:
    state = after(looked(1, WAIT), state=listed(1))
    assert actions(state, noticed("1.ckpt")) == JUDGE
    assert waiting.due(after(noticed("1.ckpt"), state=state), 100.0) == [row(1)]
    assert actions(state, noticed("1.ckpt"), now=129.95) == NOTHING


def test_a_new_path_is_admitted_and_a_scan_explains_what_is_not_new() -> None:
    state = listed(1)
    assert waiting.unknown(state, "models", noticed("new", "1.ckpt").events) == ["new"]
    assert actions(state, noticed("new")) == JUDGE
    state = after(noticed("new"), state=state)
    assert state.fresh == {("models", "new")}
    state = after(waiting.Admitting(), state=state)
    assert not state.fresh and state.stale
    assert actions(state, waiting.Admitted(all=True)) == NOTHING
    assert actions(state, waiting.Admitted(all=False)) == SCAN


def test_a_path_that_is_named_again_while_it_is_admitted_is_fresh_again() -> None:
    state = after(noticed("new"), waiting.Admitting(), noticed("new"), waiting.Admitted(all=True))
    assert state.fresh == {("models", "new")}


def test_lost_events_and_very_many_of_them_are_left_to_a_scan() -> None:
    assert actions(State(), noticed("a", unknown=True)) == SCAN
    many = noticed(*map(str, range(MANY + 1)))
    assert actions(State(), many) == SCAN and after(many).fresh == frozenset()


def test_where_links_are_any_event_of_a_model_or_sidecar_is_a_reason_to_scan() -> None:
    linked = replace(listed(1), has_links=True)
    assert actions(linked, noticed("1.ckpt")) == NOTHING
    assert actions(linked, noticed("other")) == Actions(scan=True, judge=True)
    assert actions(linked, noticed(sidecars=frozenset({"x"}))) == SCAN


def test_folders_that_came_are_scanned_twice() -> None:
    state = after(noticed(folders=True))
    assert state.scan_at == 100.0 + waiting.SCAN_TWICE
    assert after(waiting.Scanning(), state=state, now=100.5).scan_at == state.scan_at
    assert after(waiting.Scanning(), state=state, now=101.0).scan_at == float("inf")


def test_what_is_gone_or_overtaken_waits_for_a_scan_which_has_it_looked_at_soon_if_it_is_there() -> None:
    for one in (looked(1, gate.Ignore(why="it is gone")), looked(1, gate.Admit(proof="stable"), 1)):
        state = listed(1)
        assert actions(state, one) == SCAN
        state = after(one, state=state)
        assert state.stale and waiting.next_due(state) == 160.0
        begun = after(waiting.Scanning(), state=state)
        assert actions(begun, scanned("1.ckpt")) == JUDGE and actions(begun, scanned("other")) == NOTHING
        assert waiting.next_due(after(scanned("1.ckpt"), state=begun)) == 100.0 + gate.LOOK_AGAIN
        assert waiting.next_due(after(scanned("other"), state=begun)) == 160.0


def test_what_is_left_to_a_scan_that_has_begun_is_for_the_next_one() -> None:
    state = after(waiting.Scanning(), looked(1, gate.Ignore(why="it is gone")), state=listed(1))
    state = after(scanned("1.ckpt"), state=state)
    assert waiting.next_due(state) == 160.0
    assert waiting.next_due(after(waiting.Scanning(), scanned("1.ckpt"), state=state)) == 100.0 + gate.LOOK_AGAIN


def test_a_row_that_changed_is_looked_at_afresh_and_keeps_what_was_seen_of_it() -> None:
    state = after(looked(1, WAIT), looked(2, WAIT), state=listed(1, 2))
    state = after(waiting.Listed([row(1), row(2, version=2), row(3)]), state=state)
    assert [one.id for one in waiting.due(state, 100.0)] == [2, 3]
    assert waiting.track_of(state, row(2)) is not None and waiting.track_of(state, row(3)) is None
    assert after(waiting.Listed([]), state=state).files == {}


def test_a_scan_that_leaves_something_is_followed_by_another_and_counts_in_the_end() -> None:
    state, done = State(), []
    for _ in range(waiting.LEFT_SCANS):
        state = after(waiting.Scanning(), state=state)
        assert actions(state, scanned(left=1)) == SCAN
        state = after(scanned(left=1), state=state)
        done.append(state.done)
    assert done == [0, 0, waiting.LEFT_SCANS]
    state = after(waiting.Scanning(), scanned(), state=state)
    assert (state.done, state.left) == (waiting.LEFT_SCANS + 1, 0)


def test_changes_that_a_scan_wrote_down_are_judged_and_listed_anew() -> None:
    state = after(waiting.Listing())
    assert actions(state, scanned(changes=1)) == JUDGE and after(scanned(changes=1), state=state).stale
    assert not after(scanned(), state=state).stale
    assert actions(state, waiting.Unhashed()) == Actions(scan=True, judge=True)


def test_a_change_while_the_list_is_read_has_it_read_again() -> None:
    state = after(waiting.Listing(), waiting.Unhashed(), waiting.Listed([row(1)]))
    assert state.stale


def test_problems_are_kept_until_the_next_scan() -> None:
    state = after(scanned(problems=(ScanProblem("x", "it can't be read"),)))
    assert state.problems == {"models": ("x: it can't be read",)}
    assert after(scanned(), state=state).problems == {"models": ()}


def test_a_file_waits_since_it_came_whatever_was_said_of_it_since() -> None:
    state = after(looked(1, WAIT), state=listed(1, 2), now=100.0)
    state = after(looked(1, gate.Wait(until=200.0, why="a program writes it")), state=state, now=110.0)
    rows = [(id, row(id).path, 5000.0) for id in (1, 2, 9)]
    page = waiting.page(state, rows, now=120.0, wall=5010.0, most=10_000)
    assert [(one.path.rel, one.since) for one in page] == [("1.ckpt", 4990.0), ("2.ckpt", 5000.0), ("9.ckpt", 5000.0)]
    assert page[0].why == "a program writes it" and page[1].why == page[2].why
    assert len(waiting.page(state, rows, now=120.0, wall=5010.0, most=10)) == 1
