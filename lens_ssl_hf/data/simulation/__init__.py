"""
Simulated three-band (g, r, i) cutouts of strong lenses and of galaxies that are mistaken for them.

Needs numpy alone. The modules follow the light: `populations`, `lensing`, `light`, `scenes`, `observation`, and the
`simulator` that makes a cutout of them; `survey` holds the options.

How the two classes are kept alike: every cutout, of either class, starts from a lens system that passes the same
visibility cuts. A lens shows it. A non-lens keeps its galaxy and the light of its arcs, but that blue light is painted
as spiral arms, a ring, companions, tidal tails or a smooth galaxy, and is a little redder since it belongs to the
galaxy. So shape tells the classes apart; brightness, overall colour, seeing and depth hardly do.

`SimulationConfig(varied=True)` gives this up for variety: every cutout has a survey of its own, and the light that a
non-lens has in place of the arcs may be fainter or brighter.

Scores on these cutouts validate software. They do not predict how a model does on the sky.
"""

from .simulator import simulate_cutout, simulate_cutouts
from .survey import BANDS, SIMULATOR_VERSION, SimulationConfig

__all__ = ["BANDS", "SIMULATOR_VERSION", "SimulationConfig", "simulate_cutout", "simulate_cutouts"]
