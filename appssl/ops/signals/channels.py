"""Which channels of a device are the x, y and z of one vector."""

import numpy as np


def vectors(channels: list[str]) -> np.ndarray:
    """(n, 3) int64: channels named `*_x`, `*_y`, `*_z`, or `x_*`, `y_*`, `z_*`, or x, y, z."""
    position = {name: k for k, name in enumerate(channels)}
    found = []
    for name in channels:
        shapes = ("{}" + name[1:], name[:-1] + "{}") if name != "x" else ("{}",)
        for shape in shapes:
            triple = [shape.format(axis) for axis in "xyz"]
            if name == triple[0] and all(n in position for n in triple):
                found.append([position[n] for n in triple])
                break
    return np.array(found, np.int64).reshape(-1, 3)
