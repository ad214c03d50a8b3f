"""`python -m mosaic_jax` is the `mosaic-jax` command."""

import sys

from mosaic_jax.cli import main

sys.exit(main())
