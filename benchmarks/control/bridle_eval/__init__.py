"""The judge of the pocket world: classical vision against exact ground truth, nothing learned."""

import sys
from pathlib import Path

# Palette and shapes are the world's own, and the world is a script folder, not an installed package.
sys.path.append(str(Path(__file__).resolve().parents[3] / "examples" / "pocket"))
