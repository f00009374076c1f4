#!/usr/bin/env python3
"""Print what failed in the runs whose junit.xml is given, a few lines each: a long log's middle is often cut off."""

import sys
from xml.etree import ElementTree

_LINES, _COLUMNS = 12, 200

for path in sys.argv[1:]:
    try:
        cases = list(ElementTree.parse(path).iter("testcase"))
    except (OSError, ElementTree.ParseError) as error:
        sys.stdout.write(f"{path}: {error}\n")
        continue
    for case in cases:
        for found in (*case.iter("failure"), *case.iter("error")):
            sys.stdout.write(f"\n{case.get('classname')}::{case.get('name')}: {found.tag} after {case.get('time')} s\n")
            said = (found.get("message") or found.text or "").splitlines()
            sys.stdout.writelines(f"{line[:_COLUMNS]}\n" for line in said[:_LINES])
