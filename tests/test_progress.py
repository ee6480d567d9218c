"""Progress: a bar on a terminal, few lines in a log file."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
import sys
import termios

from ltos_pyg import progress
from ltos_pyg.progress import Progress

NESTED = """
from ltos_pyg.progress import Progress
import sys, time
with Progress(total=10, desc='training') as bar:
    for _ in range(10):
        for _ in Progress(range(3), desc='evaluation', leave=False):
            time.sleep(0.005)
        bar.set_postfix_str('best 1')
        bar.update()
    Progress.write('ltos: a word', file=sys.stderr)
"""


def test_a_log_file_gets_lines_and_few_of_them():
    done = subprocess.run([sys.executable, '-c', NESTED], capture_output=True, text=True, check=True)
    first, word, last = done.stderr.splitlines()
    assert first.startswith('training:   0%')
    assert word == 'ltos: a word'
    assert last.startswith('training: 100%')
    assert not {'\r', '\x1b'} & {*done.stderr}


def test_a_terminal_gets_a_bar():
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack('HHHH', 24, 80, 0, 0))
    subprocess.run([sys.executable, '-c', NESTED], stderr=theirs, check=True)
    os.close(theirs)
    shown = os.read(ours, 1_000_000).decode()
    os.close(ours)
    assert shown.count('\rtraining:') > 5
    assert '\revaluation:' in shown


def test_lines_come_at_their_interval(monkeypatch, capsys):
    monkeypatch.setattr(progress, 'SECONDS', 0.0)
    with Progress(total=3, desc='trials', mininterval=0) as bar:
        for _ in range(3):
            bar.update()
    shown = capsys.readouterr().err.splitlines()
    assert [f' {n}/3 ' in line for n, line in enumerate(shown[:4])] == [True] * 4


def test_a_bar_that_is_switched_off_prints_nothing(capsys):
    with Progress(total=3, disable=True) as bar:
        bar.update()
    assert capsys.readouterr().err == ''
