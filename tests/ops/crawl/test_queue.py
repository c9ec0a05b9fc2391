import asyncio
import time

from appssl.ops.crawl.journal import Result
from appssl.ops.crawl.queue import Job, Queue


def queue(counts, *, per_host=2, num_open=256):
    opened = []

    def hosts():
        for name, count in counts.items():
            opened.append(name)
            yield name, iter([Job(name, f"{name}{n}", "") for n in range(count)])

    return Queue(hosts(), per_host=per_host, num_open=num_open), opened


def drained(made, *, workers=4, work=None):
    """Keys in the order in which they were taken."""
    taken = []

    async def worker():
        while job := await made.take():
            taken.append(job.key)
            if work is not None:
                await work(job)
            else:
                await asyncio.sleep(0)
            made.pace(job.host).has_answered = True
            made.leave(job.host)
            made.done(job)

    async def run():
        await asyncio.wait_for(asyncio.gather(*(worker() for _ in range(workers))), 10)

    asyncio.run(run())
    return taken


def test_everything_is_taken_once_and_hosts_take_turns():
    made, _ = queue({"a": 4, "b": 2, "c": 1})
    assert drained(made, workers=1) == ["a0", "b0", "c0", "a1", "b1", "a2", "a3"]


def test_nothing_to_do_ends_at_once():
    assert drained(queue({})[0]) == []


def test_hosts_are_opened_as_others_end():
    made, opened = queue(dict.fromkeys("abcdef", 2), num_open=2)
    seen = []

    async def work(job):
        seen.append(len(opened))

    assert sorted(drained(made, workers=1, work=work)) == [f"{name}{n}" for name in "abcdef" for n in range(2)]
    assert seen[0] == 2
    assert seen == sorted(seen)


def test_the_bound_holds_and_is_one_until_the_first_answer():
    made, _ = queue({"a": 12}, per_host=3)
    active, seen = set(), []

    async def work(job):
        active.add(job.key)
        seen.append(len(active))
        await asyncio.sleep(0.01)
        active.remove(job.key)

    drained(made, workers=8, work=work)
    assert seen[:2] == [1, 1]
    assert max(seen) == 3


def test_a_paused_host_waits_and_the_others_do_not():
    made, _ = queue({"a": 2, "b": 2}, per_host=1)
    made.pause("a", 0.2)
    begun = time.monotonic()
    times = {}

    async def work(job):
        times[job.key] = time.monotonic() - begun

    assert drained(made, work=work)[:2] == ["b0", "b1"]
    assert times["b1"] < 0.1
    assert 0.19 < times["a0"] < 1


def test_another_attempt_comes_after_its_time_and_before_the_queue_ends():
    made, _ = queue({"a": 2}, per_host=1)

    async def run():
        first = await made.take()
        made.leave("a")
        made.again(Job("a", first.key, "", attempts=1), wait=0.1)
        second = await made.take()
        made.leave("a")
        made.done(second)
        begun = time.monotonic()
        third = await made.take()
        made.leave("a")
        made.done(third)
        return first, second, third, time.monotonic() - begun, await made.take()

    first, second, third, waited, end = asyncio.run(run())
    assert (first.key, second.key, third.key, third.attempts) == ("a0", "a1", "a0", 1)
    assert waited > 0.08
    assert end is None


def test_further_attempts_come_after_what_was_not_tried_yet():
    made, _ = queue({"a": 4}, per_host=1)

    async def run():
        taken = []
        while job := await made.take():
            taken.append(job.key)
            made.leave("a")
            if job.key == "a0" and not job.attempts:
                made.again(Job("a", job.key, "", attempts=1), wait=0.0)
            else:
                made.done(job)
        return taken

    assert asyncio.run(run()) == ["a0", "a1", "a2", "a3", "a0"]


def test_few_addresses_wait_for_another_attempt_at_once():
    made, _ = queue({"a": 1000}, per_host=1)
    waiting, most = set(), 0

    async def run():
        nonlocal most
        while job := await made.take():
            made.leave("a")
            waiting.discard(job.key)
            if job.attempts:
                made.done(job)
                continue
            made.again(Job("a", job.key, "", attempts=1), wait=0.0)
            waiting.add(job.key)
            most = max(most, len(waiting))

    asyncio.run(run())
    assert (len(waiting), most) == (0, 64)


def test_who_follows_a_redirect_waits_for_a_place_there():
    made, _ = queue({"a": 1}, per_host=1)

    async def run():
        job = await made.take()
        waiting = asyncio.ensure_future(made.enter("a"))
        await asyncio.sleep(0.02)
        is_waiting = not waiting.done()
        made.leave("a")
        await asyncio.wait_for(waiting, 1)
        made.leave("a")
        made.done(job)
        return is_waiting, made.pace("a").active

    assert asyncio.run(run()) == (True, 0)


def test_a_closed_host_is_not_paused():
    made, _ = queue({"a": 3})
    made.pause("a", 60)
    made.pace("a").close(Result("failed", "http_503"))
    begun = time.monotonic()
    assert len(drained(made)) == 3
    assert time.monotonic() - begun < 1
