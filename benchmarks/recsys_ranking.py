"""The best unseen items of many users over the full catalogue, beside the bare matrix product and `implicit`.

python benchmarks/recsys_ranking.py [users] [items] [width] [repeats]

One thread, CPU time, all three in turn; vectors are normal, every user has seen 50 items. The bare product makes the
same scores in blocks of the same size and drops them. The peer is `recommend` of an ALS model of implicit (extra
recsys) with these vectors as its factors. With a CUDA device ours and the bare product are measured there too, in
seconds of the clock.
"""

import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from implicit.cpu.als import AlternatingLeastSquares
from threadpoolctl import threadpool_limits

from appssl.ops.interactions.topk import best_items, product_scores, seen_matrix

GOALS = {"bare product": 0.5, "implicit": 1.0}  # our rate as a multiple of theirs, at least
SEEN, K, BLOCK = 50, 20, 128


def bare(users: torch.Tensor, items: torch.Tensor) -> None:
    scores = torch.empty(BLOCK, len(items), device=users.device)
    for block in users.split(BLOCK):
        torch.matmul(block, items.T, out=scores[: len(block)])


def ours(users: torch.Tensor, items: torch.Tensor, seen) -> np.ndarray:  # type: ignore[no-untyped-def]
    blocks = best_items(product_scores(users, items), np.arange(len(users)), seen, K, block=BLOCK)
    return np.concatenate([found for _, found, _ in blocks])


def seconds(job: Callable[[], object], clock: Callable[[], float]) -> float:
    begun = clock()
    job()
    return clock() - begun


def by_the_clock() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()


def measured(jobs: dict[str, Callable[[], object]], repeats: int, clock: Callable[[], float]) -> dict[str, float]:
    """Median seconds of each job; all are run in turn, once more than is measured."""
    rounds = [{name: seconds(job, clock) for name, job in jobs.items()} for _ in range(repeats + 1)][1:]
    return {name: statistics.median(times[name] for times in rounds) for name in jobs}


def told(where: str, found: dict[str, float], num_users: int) -> bool:
    own = found.pop("appssl")
    print(f"{where}: appssl {own:.2f} s, {num_users / own:,.0f} users/s")
    for name, theirs in found.items():
        verdict = "" if theirs / own >= GOALS[name] else ": NOT REACHED"
        print(
            f"  {name} {theirs:.2f} s; our rate is {theirs / own:.2f} of it (goal {GOALS[name]}){verdict}", flush=True
        )
    return all(theirs / own >= GOALS[name] for name, theirs in found.items())


def main() -> None:
    given = [int(word) for word in sys.argv[1:]]
    num_users, num_items, width, repeats = given + [20_000, 50_000, 64, 3][len(given) :]
    rng = np.random.default_rng(0)
    of_users, of_items = (rng.standard_normal((n, width)).astype(np.float32) for n in (num_users, num_items))
    places = np.repeat(np.arange(num_users), SEEN), rng.integers(0, num_items, num_users * SEEN)
    seen = seen_matrix(*places, num_users, num_items)
    model = AlternatingLeastSquares(factors=width, num_threads=1)
    model.user_factors, model.item_factors = of_users, of_items
    users, items = torch.from_numpy(of_users), torch.from_numpy(of_items)
    torch.set_num_threads(1)
    with threadpool_limits(1):
        jobs: dict[str, Callable[[], object]] = {
            "appssl": lambda: ours(users, items, seen),
            "bare product": lambda: bare(users, items),
            "implicit": lambda: model.recommend(np.arange(num_users), seen, N=K),
        }
        same = (ours(users, items, seen) == model.recommend(np.arange(num_users), seen, N=K)[0]).mean()
        print(f"{num_users:,} users x {num_items:,} items x {width}; {same:.4%} of places have implicit's item")
        reached = told("CPU, one thread", measured(jobs, repeats, time.process_time), num_users)
    if torch.cuda.is_available():
        on = users.cuda(), items.cuda()
        jobs = {"appssl": lambda: ours(*on, seen), "bare product": lambda: bare(*on)}
        reached &= told(torch.cuda.get_device_name(), measured(jobs, repeats, by_the_clock), num_users)
    sys.exit(0 if reached else 1)


if __name__ == "__main__":
    main()
