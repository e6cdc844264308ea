# SPDX-License-Identifier: GPL-2.0-or-later
"""
What programs write into docs/results.md
"""
import tempfile
import unittest
from pathlib import Path

from lab.results import record, table

from .testcase import main


class Results(unittest.TestCase):
    """A page with text that people have written"""

    def test_record(self) -> None:
        """A command replaces what it has written before, and nothing else."""
        with tempfile.TemporaryDirectory() as folder:
            page = Path(folder) / 'results.md'
            page.write_text('# Results\n\nOurs.\n', 'utf-8')
            record('./run a', 'one', page)
            record('./run b', 'two', page)
            record('./run a', table(['x', 'y|z'], [[1, 2]]), page)
            text = page.read_text('utf-8')
        self.assertTrue(text.startswith('# Results\n\nOurs.\n'))
        self.assertEqual(text.count('<!-- written by ./run a -->'), 1)
        self.assertNotIn('one', text)
        self.assertIn('two', text)
        self.assertIn('| x | y\\|z |\n| --- | --- |\n| 1 | 2 |', text)


if __name__ == '__main__':
    main()
