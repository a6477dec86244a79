"""How the ego vehicle moves: closed forms of time, so that any frame can be asked for first."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Route:
    """Speed, bends and shake of one drive."""

    speed_m_s: float
    surge_m: float
    surge_rad_s: float
    bend_per_m: float
    bend_rad_s: float
    phases: tuple[float, float, float, float]

    def travelled_m(self, t_s: float) -> float:
        """Distance since the start; its speed stays positive."""
        return 400.0 + self.speed_m_s * t_s + self.surge_m * math.sin(self.surge_rad_s * t_s + self.phases[0])

    def braking(self, t_s: float) -> bool:
        return math.sin(self.surge_rad_s * t_s + self.phases[0]) > 0.55

    def curvature_per_m(self, t_s: float) -> float:
        return self.bend_per_m * math.sin(self.bend_rad_s * t_s + self.phases[1])

    def turned(self, t_s: float) -> float:
        """-1..1: how far the far background has moved sideways, the integral of the bend."""
        return -math.cos(self.bend_rad_s * t_s + self.phases[1])

    def sway_m(self, t_s: float) -> float:
        return 0.22 * math.sin(0.5 * t_s + self.phases[2])

    def pitch(self, t_s: float) -> float:
        """-1..1, small and fast like a suspension."""
        return 0.6 * math.sin(1.9 * t_s + self.phases[3]) + 0.4 * math.sin(5.3 * t_s + self.phases[0])


def route_for(rng: np.random.Generator) -> Route:
    speed = float(rng.uniform(6.0, 13.0))
    surge_rate = float(rng.uniform(0.15, 0.4))
    phases = rng.uniform(0, 2 * math.pi, 4)
    return Route(
        speed_m_s=speed,
        surge_m=0.45 * speed / surge_rate * float(rng.uniform(0.2, 1.0)),
        surge_rad_s=surge_rate,
        bend_per_m=1 / 420 * float(rng.uniform(0.1, 1.0)),
        bend_rad_s=float(rng.uniform(0.1, 0.25)),
        phases=(float(phases[0]), float(phases[1]), float(phases[2]), float(phases[3])),
    )
