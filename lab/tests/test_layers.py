# SPDX-License-Identifier: GPL-2.0-or-later
"""
The parts of the lab import the library, and not each other
"""
import ast
import unittest
from pathlib import Path
from typing import Iterator, List

from lab import ROOT

from .testcase import main

LAB = ROOT / 'lab'
LEAVES = 'tests', 'demo', 'bench', 'torture', 'fuzz'


def imports(file: Path) -> Iterator[str]:
    """The full names of the modules that a module of the lab imports."""
    package = ('lab', *file.parent.relative_to(LAB).parts)
    for node in ast.walk(ast.parse(file.read_text('utf-8'))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[:len(package) + 1 - node.level]
            name = '.'.join([*(above if node.level else ()),
                             *filter(None, [node.module])])
            # What is imported may be a module itself.
            yield from (f'{name}.{alias.name}' for alias in node.names)


class Layers(unittest.TestCase):
    """Imports within the lab"""

    def imported(self, folder: str) -> List[str]:
        """Imports of other parts of the lab, by the modules of a part."""
        files = list((LAB / folder).rglob('*.py'))
        self.assertTrue(files)
        return [f'{file.name}: {name}' for file in files
                for name in imports(file)
                if name.startswith('lab.') and
                not name.startswith(f'lab.{folder}.')]

    def assert_none_of(self, folder: str, parts: List[str]) -> None:
        """The modules of a part must not import any of these parts."""
        self.assertEqual([
            name for name in self.imported(folder)
            if name.split(': ')[1].split('.')[1] in parts], [])

    def test_leaves(self) -> None:
        """No leaf imports another leaf, but all import the library."""
        for folder in LEAVES:
            self.assert_none_of(folder, [leaf for leaf in LEAVES
                                         if leaf != folder])
            self.assertIn('lab.machines.', ' '.join(self.imported(folder)))

    def test_library(self) -> None:
        """The library imports no leaf."""
        self.assert_none_of('machines', list(LEAVES))

    def test_path(self) -> None:
        """No module changes where Python looks for modules."""
        for file in LAB.rglob('*.py'):
            if file != Path(__file__).resolve():
                self.assertNotIn('sys.path', file.read_text('utf-8'), file)


if __name__ == '__main__':
    main()
