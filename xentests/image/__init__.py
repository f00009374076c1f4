"""From packages to bootable files, by a declarative recipe and without running foreign code."""
