"""Distribution shift as verbs: methods trained on some domains and measured where they saw no labels, or on domains one after another.

``shift`` runs methods x targets x seeds and returns plain data with intervals; ``continual`` runs methods over domains or classes in
turn; what ``shift`` keeps, ``Adapted.load`` reads and uses on new rows.
"""

from .adapted import Adapted, make_learner
from .domains import Shifted, encoded, kept, load_domains
from .leaderboard import leaderboard
from .sequence import continual
from .sweep import shift

__all__ = ["Adapted", "Shifted", "continual", "encoded", "kept", "leaderboard", "load_domains", "make_learner", "shift"]
