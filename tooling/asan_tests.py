# SPDX-License-Identifier: GPL-2.0-or-later
"""Describe a build of unit tests with sanitizers that needs few new objects.

usage: python3 -m tooling.asan_tests OBJ OUTPUT TEST...

OBJ is a build folder of QEMU without sanitizers.  TEST is a target of it that
is built, such as tests/unit/test-char.  Prints a Ninja file, to be run in OBJ,
which makes the programs OUTPUT/TEST.  Each object that the linker was given by
name is compiled again with ASan and UBSan: the test, the code that it tests,
chardevs, channels, objects and the migration stream.  Only the archive
libqemuutil.a (500 objects) is linked as it is: no unit test of the series
tests it.  ./run sanitize builds all of QEMU with sanitizers.
"""
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Dict, Iterator, List, Set

SANITIZE = ['-fsanitize=address,undefined', '-fno-sanitize-recover=undefined']
RULES = '''builddir = {output}
rule run
  command = $line
  description = Sanitized $out
  deps = gcc
  depfile = $out.d
rule link
  command = $line
  description = Linking $out
'''


def ninja(obj: Path, *words: str) -> str:
    return subprocess.run(['ninja', '-C', obj, '-t', *words], check=True,
                          capture_output=True, text=True).stdout


def compile_commands(obj: Path) -> Dict[str, List[str]]:
    """How each object is compiled, by the object's path below OBJ."""
    entries = json.loads((obj / 'compile_commands.json').read_text('utf-8'))
    return {e['output']: shlex.split(e['command']) for e in entries}


def statement(rule: str, target: Path, inputs: List[str],
              command: List[str]) -> Iterator[str]:
    """A build statement of Ninja."""
    yield f'build {target}: {rule} {" ".join(inputs)}'
    yield f'  line = {shlex.join(command).replace("$", "$$")}'


def compiled(command: List[str], target: Path) -> Iterator[str]:
    """Compile an object again, with sanitizers, as TARGET."""
    command = ['-O1' if word == '-O2' else word for word in command]
    command[command.index('-o') + 1] = str(target)
    command[command.index('-MF') + 1] = f'{target}.d'
    command[command.index('-MQ') + 1] = str(target)
    return statement('run', target, [command[-1]], command + SANITIZE)


def describe(obj: Path, output: Path, tests: List[str]) -> Iterator[str]:
    """The lines of the Ninja file."""
    yield RULES.format(output=output)
    compile_command = compile_commands(obj)
    known: Set[str] = set()
    for test in tests:
        link = shlex.split(ninja(obj, 'commands', '-s', test))
        objects = [word for word in link if word in compile_command]
        for name in sorted(set(objects) - known):
            yield from compiled(compile_command[name], output / name)
        known |= set(objects)
        link = [str(output / word) if word in (test, *objects) else word
                for word in link]
        yield from statement(
            'link', output / test,
            [str(output / name) for name in objects] + ['libqemuutil.a'],
            [*link, *SANITIZE])


if __name__ == '__main__':
    if len(sys.argv) < 4:
        raise SystemExit(__doc__)
    print('\n'.join(describe(Path(sys.argv[1]), Path(sys.argv[2]),
                             sys.argv[3:])))
