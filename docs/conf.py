"""The documentation site: ``pip install -e '.[docs]'``, then ``make -C docs html``."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

import myst_nb.core.render

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / '_ext'), str(HERE.parent)]
os.environ.setdefault('OMP_NUM_THREADS', '1')  # also for the notebooks' kernels: the graphs are small
os.environ['PYTHONPATH'] = os.pathsep.join([str(HERE.parent), os.environ.get('PYTHONPATH', '')])

project = 'ltos_pyg'
author = copyright = 'The ltos_pyg developers'
version = release = re.search(r"__version__ = '(.+)'", (HERE.parent / 'ltos_pyg/__init__.py').read_text('utf-8'))[1]

extensions = [
    'sphinx.ext.autodoc',
    'sphinx.ext.napoleon',
    'sphinx.ext.mathjax',
    'sphinx.ext.viewcode',
    'myst_nb',
    'field_tables',
]
exclude_patterns = ['_build', 'results/*', '**.ipynb_checkpoints']
html_theme = 'furo'
html_title = f'ltos_pyg {version}'
suppress_warnings = ['ref.python']  # DGN is a network of `nn` and an algorithm of `algos`: short references find both

autodoc_default_options = {'members': True, 'member-order': 'bysource'}
autodoc_typehints_format = 'short'
napoleon_numpy_docstring = False
napoleon_custom_sections = ['Shapes']

myst_enable_extensions = ['dollarmath', 'amsmath', 'colon_fence']
myst_heading_anchors = 3
nb_execution_mode = 'cache'
nb_execution_raise_on_error = True
nb_execution_in_temp = True  # notebooks write files
nb_execution_timeout = 900  # seconds a cell
nb_merge_streams = True
nb_output_stderr = 'remove'  # progress bars


def unlink_run_folders(app: Any, docname: str, source: list[str]) -> None:
    """Links to folders of ``docs/results`` (data, not pages) work in a repository; on the site they are plain text."""
    source[0] = re.sub(r'(?<!!)\[([^\]]+)\]\(results(?:/[^)]*)?\)', r'`\1`', source[0])


def join_streams(outputs: list[Any]) -> list[Any]:
    """One output for all that a cell prints. myst-nb's own function breaks a line wherever the kernel flushed."""
    joined: list[Any] = []
    for output in outputs:
        if output['output_type'] == 'stream' and joined and joined[-1].get('name') == output['name']:
            joined[-1]['text'] += output['text']
        else:
            joined.append(output)
    return joined


myst_nb.core.render.coalesce_streams = join_streams


def setup(app: Any) -> None:
    app.connect('source-read', unlink_run_folders)
