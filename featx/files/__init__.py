"""Files written whole, files of anybody read safely, and what may be written where."""
