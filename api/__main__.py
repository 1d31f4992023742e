"""`python -m api`: serve the API with the settings of the environment."""

import sys

from api.server import main

sys.exit(main())
