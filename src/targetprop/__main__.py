"""``python -m targetprop``, which ``torchrun -m targetprop`` runs too."""

import sys

from targetprop.cli import main

sys.exit(main())
