# SPDX-License-Identifier: GPL-2.0-or-later
"""
The forms in which QEMU takes options, and options that two QEMUs cannot have

live-update must parse options as QEMU does, and refuse what the new QEMU
cannot have before anything is changed.
"""
import contextlib
import json
import os
import random
import re
import socket
import subprocess
import threading
from pathlib import Path
from typing import Any, Dict, Iterator, List

from qemu.live_update.vm.cmdline import FLAGS, CommandLine, Option, is_on

from lab import OBJ
from lab.machines.backend import make_disk
from lab.machines.monitor import Monitor
from lab.machines.updated_vm import UpdatedVM

from .live_update_case import LiveUpdateTest
from .testcase import TestCase, main

SOURCE = OBJ.parent / 'src'
LATER = 10 ** 8             # milliseconds until a chardev connects again
# A process that connects a vhost-user back-end, which listens, to a QEMU that
# listens, too; it prints a line when it has connected, and when that ends.
CONNECTOR = '''
import array, socket, sys, threading
qemu, backend = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
backend.connect(sys.argv[2])
while qemu.connect_ex(sys.argv[1]):
    pass
print('connected', flush=True)
def copy(source, target):
    while True:
        data, more, _, _ = source.recvmsg(65536, 4096)
        if not data:
            break
        fds = [fd for _, _, item in more for fd in array.array('i', item)]
        socket.send_fds(target, [data], fds)
        for fd in fds:
            __import__('os').close(fd)
    print('ended', flush=True)
for pair in (qemu, backend), (backend, qemu):
    threading.Thread(target=copy, args=pair).start()
'''


class Options:
    """
    Generates options, the same ones each time.

    expected: what QEMU must tell of them; see Parsed

    @param folder: for files
    """
    LETTERS = 'ab.,\'"={}\\ :%-_[]\u00e9\u20ac\U0001f600'

    def __init__(self, folder: Path) -> None:
        self.options: List[Option] = []
        self._random = random.Random(12)
        self._folder = folder

    def text(self, letters: str = LETTERS) -> str:
        """Some letters."""
        return ''.join(self._random.choices(
            letters, k=self._random.randint(1, 12)))

    def file(self) -> str:
        """The path of a file that exists, with odd letters."""
        path = self._folder / f'{len(self.options)}{self.text()}'
        path.write_bytes(bytes(4096))
        return str(path)

    def keyval(self, first: str, *parts: str) -> str:
        """Join a value and parts "a=b", in any order after the first."""
        doubled = [part.replace(',', ',,') for part in parts]
        self._random.shuffle(doubled)
        return ','.join([first, *doubled])

    def string(self, text: str) -> str:
        """A string in JSON, in either quotes."""
        quote = self._random.choice('\'"')
        result = ''
        for letter in text:
            if letter in (quote, '\\') or letter in '\'"' and \
                    self._random.random() < 0.5:
                letter = '\\' + letter
            elif ord(letter) < 0x20 or self._random.random() < 0.2:
                letter = json.dumps(letter)[1:-1] if letter != '"' else '\\"'
            elif ord(letter) < 0x10000 and self._random.random() < 0.2:
                letter = f'\\u{ord(letter):04x}'
            result += letter
        return quote + result + quote

    def json(self, value: object) -> str:
        """JSON with strings in either quotes, and blanks."""
        blank = self._random.choice(['', ' ', '\n'])
        if isinstance(value, dict):
            items = [f'{self.string(key)}{blank}:{self.json(item)}'
                     for key, item in value.items()]
            self._random.shuffle(items)
            return '{' + f'{blank},'.join(items) + blank + '}'
        if isinstance(value, list):
            return '[' + f',{blank}'.join(map(self.json, value)) + ']'
        return self.string(value) if isinstance(value, str) \
            else json.dumps(value)

    # Kinds of options

    def add_chardev(self) -> None:
        """A chardev whose socket does not exist."""
        path = f'{self._folder}/{self.text()}'[:100]
        later = f'reconnect-ms={LATER}'
        flag = self._random.choice(['server=off', 'noserver', 'nodelay',
                                    later])
        option = Option('chardev', self.keyval(
            self._random.choice(['socket', 'backend=socket']),
            f'id=c{len(self.options)}', f'path={path}', flag, later))
        if self._random.random() < 0.5:
            option = option.changed({'path': f'{self._folder}/{self.text()}'})
        self.options.append(option)

    def add_serial(self) -> None:
        """The same in the short form."""
        path = f'{self._folder}/{self.text()}'[:100]
        keyless = '=' not in path and self._random.random() < 0.7
        doubled = path.replace(',', ',,')
        self.options.append(Option('serial', 'unix:' + (
            f'{doubled},reconnect-ms={LATER}' if keyless else
            self.keyval(f'reconnect-ms={LATER}', f'path={path}'))))

    def add_object(self) -> None:
        """An object with a string."""
        words = {'qom-type': 'authz-simple', 'id': f'o{len(self.options)}',
                 'identity': self.text(self.LETTERS + '\n\t\x7f/')}
        if self._random.random() < 0.5:
            text = self.keyval('authz-simple', *(
                f'{key}={value}' for key, value in words.items()
                if key != 'qom-type'))
        else:
            text = self.json(words)
        self.options.append(Option('object', text))

    def add_list(self) -> None:
        """An object with a list."""
        self.options.append(Option('object', self.json({
            'qom-type': 'authz-list', 'id': f'o{len(self.options)}',
            'rules': [{'match': self.text(), 'policy': 'allow',
                       'format': 'exact'}
                      for _ in range(self._random.randint(1, 3))]})))

    def add_drive(self) -> None:
        """A drive, with a flag."""
        self.options.append(Option('drive', self.keyval(
            self._random.choice(['readonly', 'noreadonly', 'readonly=on',
                                 'read-only=off']),
            'if=none', f'id=d{len(self.options)}', 'format=raw',
            f'file={self.file()}')))

    def add_node(self) -> None:
        """A block node with nested options."""
        words: Dict[str, Any] = {
            'driver': 'raw', 'node-name': f'n{len(self.options)}',
            'read-only': self._random.random() < 0.5,
            'file': {'driver': 'file', 'filename': self.file()}}
        if self._random.random() < 0.5:
            text = self.json(words)
        else:
            file = words.pop('file')
            text = self.keyval(
                words.pop('driver'), f'node-name={words["node-name"]}',
                f'read-only={"on" if words["read-only"] else "off"}',
                *(f'file.{key}={value}' for key, value in file.items()))
        self.options.append(Option('blockdev', text))


class Parsed(TestCase):
    """QEMU and live-update find the same in options"""

    def assert_chardev(self, monitor: Monitor, name: str,
                       option: Option) -> None:
        """The path of a chardev."""
        address = monitor.cmd('qom-get', path=f'/chardevs/{name}',
                              property='addr')
        self.assertEqual(option.chardev()['path'], address['path'], option)

    def assert_object(self, monitor: Monitor, option: Option) -> None:
        """The string or the list of an object."""
        keys = option.keys()
        if option.kind == 'authz-simple':
            self.assertEqual(keys['identity'], monitor.cmd(
                'qom-get', path=f'/objects/{option.id}',
                property='identity'), option)
            return
        rules = monitor.cmd('qom-get', path=f'/objects/{option.id}',
                            property='rules')
        found = {f'rules.{number}.{key}': value
                 for number, rule in enumerate(rules)
                 for key, value in rule.items()}
        self.assertEqual({key: value for key, value in keys.items()
                          if key.startswith('rules.')}, found, option)

    def assert_same(self, monitor: Monitor, options: List[Option]) -> None:
        """Compare all options with what QEMU has made of them."""
        nodes = {node['node-name']: node for node in monitor.cmd(
            'query-named-block-nodes')}
        drives = {drive['device']: drive['inserted']
                  for drive in monitor.cmd('query-block')}
        serial = 0
        for option in options:
            keys = option.keys()
            if option.name == 'serial':
                self.assert_chardev(monitor, f'serial{serial}', option)
                serial += 1
            elif option.name == 'chardev':
                self.assert_chardev(monitor, option.id, option)
            elif option.name == 'object':
                self.assert_object(monitor, option)
            elif option.name == 'drive':
                drive = drives[option.id]
                self.assertEqual(keys['file'], drive['file'], option)
                self.assertEqual(is_on(keys.get('readonly')), drive['ro'],
                                 option)
            else:
                node = nodes[option.id]
                self.assertEqual(keys['file.filename'], node['file'], option)
                self.assertEqual(is_on(keys['read-only']), node['ro'], option)

    def test_parsed(self) -> None:
        """QEMU is given hundreds of options that were drawn at random."""
        files = self.scope.folder / 'files'
        files.mkdir()
        made = Options(files)
        for add, count in ((made.add_chardev, 100), (made.add_serial, 60),
                           (made.add_object, 120), (made.add_list, 60),
                           (made.add_drive, 60), (made.add_node, 100)):
            for _ in range(count):
                add()
        words = [word for option in made.options for word in option.words()]
        self.assertEqual(CommandLine.parse(words), made.options)
        qmp = self.scope.path('qmp')
        done = subprocess.run(
            [OBJ / 'qemu-system-x86_64', '-machine', 'none', '-nodefaults',
             '-display', 'none', '-daemonize', '-qmp',
             f'unix:{qmp},server=on,wait=off', *words],
            stderr=subprocess.PIPE, check=False)
        self.assertEqual(done.returncode, 0, done.stderr.decode())
        with Monitor(qmp) as monitor:
            self.assert_same(monitor, made.options)
            monitor.cmd('quit')

    def test_flags(self) -> None:
        """The options without an argument are those of this QEMU."""
        text = (SOURCE / 'qemu-options.hx').read_text('utf-8')
        found = re.findall(r'(?m)^DEF\("([\w-]+)",\s*(\w+)', text)
        self.assertGreater(len(found), 100)
        for name, argument in found:
            self.assertEqual(name in FLAGS, argument == '0', name)


class Forms(LiveUpdateTest):
    """VMs whose options have forms that are less used"""

    def assert_updates_twice(self, vm: UpdatedVM) -> None:
        """The second update is from the command line of the first."""
        for _ in range(2):
            files = set(vm.files())
            old = vm.qemu.pid
            vm.assert_runs()
            self.assertNotEqual(vm.qemu.pid, old)
            self.assertEqual(set(vm.files()), files)

    def test_forms(self) -> None:
        """Odd paths, odd forms, a terminal that is not used."""
        image = make_disk(self.scope.path('image'))
        vm = self.bare('-device', "{'driver':'virtio-rng-pci','id':'it''s'}"
                       .replace("it''s", 'rng'), '-M', 'hpet=off',
                       '--no-shutdown', '-device', 'qemu-xhci,id=x', '-device',
                       "{'driver':'usb-kbd','id':'kbd','bus':'x.0'}", image)
        folder = vm.qemu.folder / 'a, b=c'
        folder.mkdir()
        path = str(folder / 'qmp.sock')
        line = vm.qemu.command
        line[line.index(f'unix:{vm.qemu.qmp},server=on,wait=off')] = \
            f'unix:path={path.replace(",", ",,")},server,nowait'
        line[line.index('-serial') + 1] = f'pty:{folder}/terminal'
        vm.qemu.qmp = path
        vm.qemu.drop('-nodefaults')
        line += ['-nographic', '-net', 'none', '-monitor', 'none',
                 '-parallel', 'none']
        self.start_paused(vm)
        with vm.qemu.monitor() as monitor:
            monitor.cmd('device_del', id='kbd')
            monitor.wait('DEVICE_DELETED')
        self.assert_updates_twice(vm)
        with vm.qemu.monitor() as monitor:
            self.assertEqual(
                [item['name'] for item in monitor.cmd(
                    'qom-list', path='/machine/peripheral')
                 if item['name'] == 'kbd'], [])
            self.assertEqual(
                [drive['inserted']['file'] for drive
                 in monitor.cmd('query-block') if 'inserted' in drive],
                [image])

    def test_server_of_disk(self) -> None:
        """A back-end that connects to QEMU stays connected."""
        vm = self.updated_vm(disks=0)
        for option in '-kernel', '-initrd', '-append':
            vm.qemu.drop(option)
        daemon = vm.daemon('other')
        path = vm.qemu.folder / 'disk.sock'
        vm.qemu.command += [
            '-chardev', f'socket,id=c,path={path},server=on,wait=off',
            '-device', 'vhost-user-blk-pci,id=disk,chardev=c']
        connector = subprocess.Popen(
            ['python3', '-c', CONNECTOR, path, daemon.path],
            stdout=subprocess.PIPE)
        self.scope.callback(connector.wait)
        self.scope.callback(connector.kill)
        self.start_paused(vm)
        inode = path.stat().st_ino
        # The new QEMU has another device: it ends when it has started.
        vm.assert_fails(1, 'xhci', command=[*vm.qemu.command, '-device',
                                            'qemu-xhci'])
        for _ in range(2):
            vm.assert_runs()
            self.assertEqual(path.stat().st_ino, inode)
        connector.kill()
        self.assertEqual(connector.communicate()[0], b'connected\n')


def free_port() -> int:
    """A port of the host that nobody listens on."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        return int(free.getsockname()[1])


class Refused(LiveUpdateTest):
    """Options that the new QEMU cannot have while the old one runs"""

    @contextlib.contextmanager
    def server(self, name: str, count: int = 9) -> Iterator[str]:
        """A server that serves so many clients, and removes its socket."""
        path = self.scope.path(name)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen()
            clients = []

            def serve() -> None:
                with contextlib.suppress(OSError):
                    for _ in range(count):
                        clients.append(listener.accept()[0])
                os.unlink(path)
                listener.close()

            thread = threading.Thread(target=serve)
            thread.start()
            try:
                yield path
            finally:
                with contextlib.suppress(OSError):
                    listener.shutdown(socket.SHUT_RDWR)
                thread.join()
                for client in clients:
                    client.close()

    def refusals(self, vm: UpdatedVM) -> List[str]:
        """The reasons for which an update is refused; all is unchanged."""
        before = vm.state()
        for options in ('--dry-run',), ():
            outcome = vm.run(*options)
            vm.assert_unchanged(before, outcome, 1)
        return [event['message'] for event in outcome.events
                if event.get('verdict') == 'refused']

    def test_all_reasons(self) -> None:
        """All reasons are given at once."""
        folder = self.scope.folder
        for name in 'fifo.in', 'fifo.out':
            os.mkfifo(folder / name)
        pcap = folder / 'pcap'
        port = free_port()
        with self.server('once', 1) as once, self.server('net') as net:
            refused = [
                ['-nic', f'user,hostfwd=udp:127.0.0.1:{port}-:22'],
                ['-netdev', 'user,id=g,guestfwd=tcp:10.0.2.99:80-'
                 f'unix:{folder}/g,,server=on,,wait=off'],
                ['-netdev', 'stream,id=n,server=off,addr.type=unix,'
                 f'addr.path={net}'],
                ['-netdev', "{'type':'stream','id':'m','server':true,"
                 f"'addr':{{'type':'unix','path':'{folder}/m'}}}}"],
                ['-chardev', f'pipe,id=f,path={folder}/fifo'],
                ['-chardev', f'socket,id=o,path={once}'],
                ['-device', f"{{'driver':'usb-kbd','pcap':'{pcap}'}}"],
                ['-D', f'{folder}/log']]
            vm = self.bare('-device', 'qemu-xhci', *(
                word for option in refused for word in option),
                '-device', 'isa-serial,chardev=o')
            self.start_paused(vm)
            pcap.write_bytes(b'recorded')
            found = self.refusals(vm)
            self.assertEqual(len(found), len(refused), found)
            for option in refused:
                self.assertTrue(any(f"'{' '.join(option)}'" in reason
                                    for reason in found), (option, found))
            self.assertEqual(pcap.read_bytes(), b'recorded')
            vm.close()

    def test_long_folder(self) -> None:
        """Only sockets need short paths; the two QEMUs have more of them."""
        vm = self.bare()
        longest = 107 - len('/.live-update-12345678/')
        folder = vm.qemu.folder / ('x' * (
            longest - len(f'{vm.qemu.folder}/m')))
        folder.mkdir()
        line = vm.qemu.command
        line[line.index(f'unix:{vm.qemu.qmp},server=on,wait=off')] = \
            f'unix:{folder}/m,server=on,wait=off'
        short = vm.qemu.qmp
        vm.qemu.qmp = f'{folder}/m'
        self.start_paused(vm, '-qmp', f'unix:{short},server=on,wait=off',
                          '-chardev', f'pty,id=p,path={folder}/terminal')
        reason, = self.refusals(vm)
        self.assertIn('too long for a socket', reason)
        vm.qemu.qmp = short
        vm.assert_runs()

    def test_forwards(self) -> None:
        """A forwarded port is given up for the update."""
        port = free_port()
        rule = f'tcp:127.0.0.1:{port}'
        vm = self.bare('-nic', f'user,hostfwd={rule}-:22')
        self.start_paused(vm)

        def command(text: str) -> str:
            with vm.qemu.monitor() as monitor:
                answer: str = monitor.cmd('human-monitor-command',
                                          command_line=text)
                return answer

        for _ in range(2):
            reason, = self.refusals(vm)
            self.assertIn('hostfwd_remove', reason)
            self.assertIn(f'tcp:{port}', reason)
            command(f'hostfwd_remove {rule}')
            vm.assert_runs()
            self.assertNotIn('HOST_FORWARD', command('info usernet'))
            # The next time, it is a port that was added.
            command(f'hostfwd_add {rule}-:22')
            self.assertIn('HOST_FORWARD', command('info usernet'))

    def test_nbd(self) -> None:
        """A server of one client is found busy; one of two is not."""
        for most in 1, 2:
            image = make_disk(self.scope.path(f'image{most}'))
            path = self.scope.path(f'nbd{most}')
            pid_file = self.scope.path(f'pid{most}')
            subprocess.run([
                OBJ / 'storage-daemon/qemu-storage-daemon', '--daemonize',
                '--pidfile', pid_file,
                '--blockdev', f'driver=file,node-name=n,filename={image}',
                '--nbd-server', f'addr.type=unix,addr.path={path},'
                f'max-connections={most}', '--export',
                'nbd,id=e,node-name=n,writable=on'], check=True)
            vm = self.bare('-blockdev', 'driver=nbd,node-name=nbd0,export=n,'
                           f'server.type=unix,server.path={path}',
                           '-device', 'virtio-blk-pci,drive=nbd0')
            self.start_paused(vm)
            if most == 1:
                reason, = self.refusals(vm)
                self.assertIn("'nbd0'", reason)
            else:
                vm.assert_runs()
            vm.close()


if __name__ == '__main__':
    main()
