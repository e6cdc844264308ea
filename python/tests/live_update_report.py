# SPDX-License-Identifier: GPL-2.0-or-later
"""
Tests of the report of a live update

They are unit tests: no QEMU is needed.
"""
import os
import re
import tempfile
import unittest
from html.parser import HTMLParser
from pathlib import Path
from typing import List, Optional, Tuple

from qemu.live_update.report import picture
from qemu.live_update.report.html import Report, Step, Table, Text, write
from qemu.live_update.report.rings import Request

NASTY = '</pre><script src="x">\'& $\\x$'
VOID = 'meta'


class Balance(HTMLParser):
    """Checks that elements nest, and collects what they refer to."""

    def __init__(self) -> None:
        super().__init__()
        self.open: List[str] = []
        self.links: List[str] = []
        self.tags: List[str] = []

    def handle_starttag(self, tag: str,
                        attrs: List[Tuple[str, Optional[str]]]) -> None:
        self.tags.append(tag)
        self.links += [value or '' for name, value in attrs
                       if name.split(':')[-1] in ('href', 'src')]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str,
                           attrs: List[Tuple[str, Optional[str]]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, tag


def drawn(count: int) -> str:
    """A picture of as many requests of two disks, 10 ms each."""
    requests = [Request(f'{NASTY}{n % 2}', 0, n / 100, n / 100 + 0.01, None)
                for n in range(count)]
    marks = [picture.Mark(0.5, 0.513, NASTY)]
    panels = [picture.Panel(NASTY, NASTY, requests, marks, 0, 2),
              picture.Panel('', '', [], [], 3, 4)]
    return picture.svg(picture.draw(panels, NASTY))


class ReportTest(unittest.TestCase):
    """Reports with a picture"""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory(prefix='live-update-report-')
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def test_all(self) -> None:
        """Nothing is referred to, and nothing is taken for HTML."""
        path = self.folder / 'report.html'
        path.write_text('old', 'utf-8')
        write(str(path), Report(
            NASTY, NASTY, True, [(NASTY, NASTY)], drawn(100), NASTY,
            [Table(NASTY, (NASTY, 'n'), [(NASTY, 1)])], [Text(NASTY, NASTY)],
            [Step(0, NASTY, NASTY)]))
        self.assertEqual(os.listdir(self.folder), ['report.html'])
        html = path.read_text('utf-8')
        parser = Balance()
        parser.feed(html)
        parser.close()
        self.assertEqual(parser.open, [])
        self.assertNotIn('script', parser.tags)
        self.assertIn('svg', parser.tags)
        for link in parser.links:
            self.assertRegex(link, '^(#|data:)')
        for link in re.findall(r'url\((.*?)\)', html):
            self.assertRegex(link, '^#')

    def test_failure(self) -> None:
        """A file that cannot be written leaves nothing behind."""
        (self.folder / 'report.html').mkdir()
        with self.assertRaises(OSError):
            write(str(self.folder / 'report.html'), Report('', '', False))
        self.assertEqual(os.listdir(self.folder), ['report.html'])

    def test_many_dots(self) -> None:
        """A picture of many requests is not much larger."""
        self.assertLess(len(drawn(20000)), 2 * len(drawn(200)))


if __name__ == '__main__':
    unittest.main()
