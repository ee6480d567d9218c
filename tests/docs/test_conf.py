"""What the site's configuration does to pages."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).parents[2] / 'docs'


def test_pictures_of_results_stay_pictures_and_links_to_run_folders_become_text():
    (pattern,) = re.findall(r"re\.sub\(r'(.*?)', r'`", (DOCS / 'conf.py').read_text(encoding='utf-8'))
    page = '![Curves](results/tables/fig3a/figure.png) and [runs](results/before_aim)'
    assert re.sub(pattern, r'`\1`', page) == '![Curves](results/tables/fig3a/figure.png) and `runs`'
