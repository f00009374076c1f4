"""From the records of many runs to one answer: may this release ship? Rules, statistics, and the report's content."""
