"""No test keeps packed weights in the user's cache; those of the cache have directories of their own."""

import os

os.environ["BRIDLE_CACHE_DIR"] = "off"
