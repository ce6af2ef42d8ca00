"""``python -m targetprop``, which ``torchrun -m targetprop`` runs too."""

import sys

from targetprop.commands.main import main

sys.exit(main())
