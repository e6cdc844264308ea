# SPDX-License-Identifier: GPL-2.0-or-later
"""
Tests of how live-update parses a command line, what it refuses in one, and
what it changes

They are unit tests: no QEMU is needed.
"""
import shlex
import socket
import tempfile
import unittest
from pathlib import Path
from typing import Dict, List, Tuple

from qemu.live_update.vm import exclusive, servers, usernet
from qemu.live_update.vm.cmdline import CommandLine, Option
from qemu.live_update.vm.new_files import (append_to_files, has_server,
                                           rename_files)


# Command lines of management programs, scripts and manuals
LINES = Path(__file__).with_name('live_update_lines.txt')


def changed(text: str, *handed_over: str) -> str:
    """Give private names to all files; "x" becomes "NEW/x"."""
    options = CommandLine.parse(shlex.split(text))
    rename_files(options, lambda path: f'NEW/{path}',
                 lambda path: f'FILE/{path}', handed_over)
    return ' '.join(options.words())


def reasons(text: str) -> List[str]:
    """Why the new QEMU cannot be given these options."""
    options = CommandLine.parse(shlex.split(text))
    return exclusive.reasons(options) + usernet.reasons(options)


class Parsing(unittest.TestCase):
    """A command line is taken apart and put together"""

    def assert_same(self, *words: str) -> None:
        """It must be what it was."""
        self.assertEqual(CommandLine.parse(words).words(), list(words))

    def test_unchanged(self) -> None:
        """Nothing is lost, also where a value looks like an option."""
        self.assert_same()
        self.assert_same('-S', '-m', '1G', '-nodefaults', '-daemonize')
        self.assert_same('-append', '-x console=ttyS0', '-S')
        self.assert_same('-chardev', 'null,id=a', '-serial', 'chardev:a')
        self.assert_same('-drive', 'file=a,,b.img,if=none')
        self.assert_same('-name', '-snapshot', '-S')
        self.assert_same('-k', '', '-no-shutdown')
        self.assert_same('-append', '')
        self.assert_same('-S', '-append', '', '-m', '1G')

    def test_value_like_option(self) -> None:
        """The word after -name is its value."""
        options = CommandLine.parse(['-name', '-snapshot'])
        self.assertEqual(options, [Option('name', '-snapshot')])

    def test_two_dashes(self) -> None:
        """QEMU takes --option as -option."""
        self.assertEqual(CommandLine.parse(['--m', '1G']).words(),
                         ['-m', '1G'])

    def test_disk_image(self) -> None:
        """A disk image without an option is that of -hda."""
        for words, after in ((['disk.img'], ['-hda', 'disk.img']),
                             (['-m', '1G', 'disk.img', '-S'],
                              ['-m', '1G', '-hda', 'disk.img', '-S'])):
            self.assertEqual(CommandLine.parse(words).words(), after)

    def test_keys(self) -> None:
        """Keys are found in all forms of a value."""
        for value in ('driver=d,id=a', '{"driver": "d", "id": "a"}',
                      "{'driver': 'd', 'id': 'a'}"):
            option = Option('device', value)
            self.assertEqual(option.keys(), {'driver': 'd', 'id': 'a'})
            self.assertEqual((option.id, option.kind), ('a', 'd'))
        self.assertEqual(Option('append', '{not JSON').keys(), {})
        self.assertEqual(Option('append', '[1]').keys(), {'': '[1]'})

    def test_short_forms(self) -> None:
        """Flags, a value without a key, commas in values."""
        for text, keys in (
                ('socket,id=a,,b,server', {'': 'socket', 'id': 'a,b',
                                           'server': 'on'}),
                ('socket,nowait,nodelay', {'': 'socket', 'wait': 'off',
                                           'delay': 'off'}),
                ('a,,b,,,c=d', {'': 'a,b,', 'c': 'd'}),
                ('a=b=c,d=', {'a': 'b=c', 'd': ''}),
                ('a=1,a=2', {'a': '2'}),
                ('', {})):
            self.assertEqual(Option('chardev', text).keys(), keys, text)
        self.assertEqual(Option('drive', 'snapshot,file=a').keys(),
                         {'snapshot': 'on', 'file': 'a'})

    def test_quotes(self) -> None:
        """Quotes in strings of JSON."""
        for text, value in (
                (r"""{'a': 'x"y'}""", 'x"y'),
                (r"""{'a': 'x\'y'}""", "x'y"),
                (r"""{"a": "x'y"}""", "x'y"),
                (r"""{"a": "x\'y"}""", "x'y"),
                (r"""{'a': "x\\\"y"}""", 'x\\"y'),
                (r"""{'a': 'x\\'}""", 'x\\'),
                (r"""{'a': '\u00e9\n'}""", '\xe9\n')):
            self.assertEqual(Option('device', text).keys(), {'a': value})

    def test_nested_keys(self) -> None:
        """What is nested in JSON has the keys that it has with commas."""
        keys = Option('netdev', '{"type":"dgram","local":{"type":"unix"},'
                      '"a":[{"b":1},2]}').keys()
        self.assertEqual(keys, {'type': 'dgram', 'local.type': 'unix',
                                'a.0.b': 1, 'a.1': 2})

    def test_references(self) -> None:
        """Which options name what others make."""
        options = CommandLine.parse([
            '-object', 'secret,id=s', '-drive', 'file.key-secret=s,id=d',
            '-device', '{"driver":"x","a":[{"iothread":"t"}]}'])
        for name, kind in ('s', 'drive'), ('t', 'device'):
            self.assertEqual([option.name for option
                              in options.referring_to(name)], [kind])

    def test_chardevs(self) -> None:
        """The short form of a chardev has the keys of the long one."""
        for text, keys in (
                ('-serial unix:p,server,nowait',
                 {'backend': 'socket', 'path': 'p', 'server': 'on',
                  'wait': 'off'}),
                ('-qmp unix:path=p', {'backend': 'socket', 'path': 'p'}),
                ('-qmp unix:fd=3', {'backend': 'socket', 'fd': '3'}),
                ('-serial mon:unix:a,,b',
                 {'backend': 'socket', 'path': 'a,b'}),
                ('-serial telnet::1,server',
                 {'backend': 'socket', 'host': '', 'port': '1',
                  'server': 'on'}),
                ('-serial file:a,b', {'backend': 'file', 'path': 'a,b'}),
                ('-serial pty:a', {'backend': 'pty', 'path': 'a'}),
                ('-monitor pipe:a', {'backend': 'pipe', 'path': 'a'}),
                ('-serial mon:stdio', {'backend': 'stdio'}),
                ('-serial /dev/ttyS0',
                 {'backend': 'serial', 'path': '/dev/ttyS0'}),
                ('-serial none', {}), ('-serial chardev:a', {}),
                ('-chardev pty,id=a', {'backend': 'pty', 'id': 'a'}),
                ('-m 1G', {})):
            option, = CommandLine.parse(text.split())
            self.assertEqual(option.chardev(), keys, text)


class Machine(unittest.TestCase):
    """The type of the machine gets its version"""

    def test_forms(self) -> None:
        """There are several ways to name a machine, or none."""
        for before, after in (
                ('-machine q35', '-machine pc-1'),
                ('-M q35,usb=off', '-machine pc-1,usb=off'),
                ('-machine type=q35,usb=off', '-machine pc-1,usb=off'),
                ('-machine usb=off,type=q35', '-machine pc-1,usb=off'),
                ('-m 1G', '-machine pc-1 -m 1G'),
                ('-machine usb=off -M q35', '-machine usb=off -machine pc-1'),
                ('-M pc -M q35', '-machine pc-1'),
                ('-M pc,usb=off -machine type=q35 -M hpet=off',
                 '-machine usb=off -machine pc-1 -M hpet=off'),
        ):
            options = CommandLine.parse(before.split())
            options.set_machine('pc-1')
            self.assertEqual(' '.join(options.words()), after)


class Renaming(unittest.TestCase):
    """What QEMU makes in the file system gets other names"""

    def test_made_by_qemu(self) -> None:
        """Sockets that it listens on, links to terminals, and the pid file."""
        for before, after in (
                ('-pidfile p', '-pidfile FILE/p'),
                ('-pidfile a,b', '-pidfile FILE/a,b'),
                ('-qmp unix:q,server=on,wait=off',
                 '-qmp unix:NEW/q,server=on,wait=off'),
                ('-monitor unix:q,server,nowait',
                 '-monitor unix:NEW/q,server=on,wait=off'),
                ('-serial mon:unix:q,server=on',
                 '-serial mon:unix:NEW/q,server=on,wait=off'),
                ('-qmp unix:path=q,server=on',
                 '-qmp unix:NEW/q,server=on,wait=off'),
                ('-qmp unix:server=on,path=a=b',
                 '-qmp unix:path=NEW/a=b,server=on,wait=off'),
                ('-qmp unix:a,,b,server=on',
                 '-qmp unix:NEW/a,,b,server=on,wait=off'),
                ('-qtest unix:q,server=on',
                 '-qtest unix:NEW/q,server=on,wait=off'),
                ('-serial pty:t', '-serial pty:FILE/t'),
                ('-chardev pty,id=a,path=x', '-chardev pty,id=a,path=FILE/x'),
                ('-chardev socket,id=a,path=q,server=on',
                 '-chardev socket,id=a,server=on,path=NEW/q,wait=off')):
            self.assertEqual(changed(before), after)

    def test_displays(self) -> None:
        """Sockets of displays, in all forms."""
        for before, after in (
                ('-vnc unix:v,password=on', '-vnc unix:NEW/v,password=on'),
                ('-vnc vnc=unix:v,audiodev=a', '-vnc unix:NEW/v,audiodev=a'),
                ('-vnc audiodev=a,vnc=unix:v', '-vnc unix:NEW/v,audiodev=a'),
                ('-display vnc=unix:v', '-display vnc=unix:NEW/v'),
                ('-display vnc=unix:v,to=9', '-display vnc=unix:NEW/v,to=9'),
                ('-spice unix=on,addr=v,disable-ticketing=on',
                 '-spice unix=on,disable-ticketing=on,addr=NEW/v'),
                ('-spice unix,addr=v', '-spice unix,addr=NEW/v')):
            self.assertEqual(changed(before), after)

    def test_others(self) -> None:
        """What others made stays."""
        for words in ('-qmp unix:q', '-chardev socket,id=a,path=q',
                      '-serial pty', '-qmp tcp:localhost:1', '-vnc none',
                      '-vnc unix:v,reverse=on', '-display none',
                      '-display gtk,gl=on', '-gdb null', '-drive file=p',
                      '-serial unix:x,abstract=on', '-serial none',
                      '-chardev socket,id=a,path=x,abstract=on'):
            self.assertEqual(changed(words), words)

    def test_handed_over(self) -> None:
        """A server that is handed over listens when it gets the socket."""
        for before, after in (
                ('path=q', 'path=q'),
                ('path=q,server=on', 'path=q,server=on,wait=on'),
                ('path=q,server=on,wait=off', 'path=q,server=on,wait=on'),
                ('path=q,server,nowait', 'path=q,server')):
            head = '-chardev socket,id=kept,'
            self.assertEqual(changed(head + before, 'kept'), head + after)

    def test_found(self) -> None:
        """The monitor is found in all forms, after it was renamed."""
        for text in ('-qmp unix:q,server=on', '-qmp unix:path=q,server',
                     '-chardev socket,id=a,server=on,path=q'):
            options = CommandLine.parse(text.split())
            rename_files(options, lambda path: f'N,{path}', str, ())
            self.assertTrue(has_server(options, 'N,q'), text)
            self.assertFalse(has_server(options, 'N'), text)

    def test_files_are_kept(self) -> None:
        """A file that QEMU writes is not begun anew."""
        for before, after in (
                ('-chardev file,id=a,path=f',
                 '-chardev file,id=a,path=f,append=on'),
                ('-chardev file,id=a,path=f,append=off',
                 '-chardev file,id=a,path=f,append=on'),
                ('-chardev pty,id=a,logfile=f',
                 '-chardev pty,id=a,logfile=f,logappend=on'),
                ('-serial unix:p,logfile=f',
                 '-serial unix:p,logfile=f,logappend=on'),
                ('-serial file:f', '-chardev file,id=serial-file-0,path=f,'
                 'append=on -serial chardev:serial-file-0'),
                ('-serial mon:file:a,b', '-chardev file,id=serial-file-0,'
                 'path=a,,b,mux=on,append=on -serial chardev:serial-file-0')):
            options = CommandLine.parse(before.split())
            for _ in range(2):      # the second time it changes nothing
                append_to_files(options)
                self.assertEqual(' '.join(options.words()), after)


# What is refused, with a word of the reason
REFUSED = (
    # What only the old QEMU has
    ('-snapshot', 'temporary'), ('-drive file=f,snapshot=on', 'temporary'),
    ('-drive snapshot,file=f', 'temporary'),
    ('-icount shift=7,rr=record,rrfile=f', 'records'),
    ('-add-fd fd=3,set=1', 'file descriptor'),
    ('-netdev tap,id=n,fd=3', 'file descriptor'),
    ('-netdev tap,id=n,fds=3:4', 'file descriptor'),
    ('-netdev tap,id=n,vhostfd=3', 'file descriptor'),
    ('-drive file=/dev/fdset/1', 'file descriptor'),
    ('-hda /dev/fdset/1', 'file descriptor'),
    ('-netdev \'{"type":"tap","id":"n","fd":"3"}\'', 'file descriptor'),
    ("-netdev \"{'type':'tap','id':'n','fd':'3'}\"", 'file descriptor'),
    ('-netdev stream,id=n,addr.type=fd,addr.str=5', 'file descriptor'),
    ('-netdev \'{"type":"stream","id":"n","addr":{"type":"fd","str":"5"}}\'',
     'file descriptor'),
    ('-qmp unix:fd=3,server=on,wait=off', 'file descriptor'),
    ('-chardev socket,id=a,fd=3,server=on', 'file descriptor'),
    # The start of QEMU
    ('-readconfig f', 'file'), ('-preconfig', 'configured'),
    ('-run-with exit-with-parent=on', 'end'), ('-chroot /', 'sockets'),
    ('-run-with user=nobody,chroot=/', 'sockets'),
    # The terminal
    ('-nographic', 'terminal'), ('-nographic -qmp unix:q', 'terminal'),
    ('-nographic -serial null', 'terminal'), ('-serial stdio', 'terminal'),
    ('-monitor stdio', 'terminal'), ('-serial mon:stdio', 'terminal'),
    ('-chardev stdio,id=a', 'terminal'), ('-curses', 'terminal'),
    ('-chardev backend=stdio,id=a', 'terminal'),
    ('-display curses,charset=x', 'terminal'),
    # What both QEMUs would read
    ('-serial pipe:/tmp/p', 'FIFO'), ('-chardev pipe,id=a,path=p', 'FIFO'),
    ('-serial /dev/ttyS0', 'device'),
    ('-chardev serial,id=a,path=/dev/ttyS0', 'device'),
    # Files that would be emptied
    ('-D log', 'truncate'), ('-trace file=log', 'truncate'),
    ('-trace enable=x,file=log', 'truncate'), ('-trace x,file=l', 'truncate'),
    ('-object filter-dump,id=f,netdev=n,file=dump', 'object-del'),
    ('-object \'{"qom-type":"filter-dump","id":"f","file":"dump"}\'',
     'truncate'),
    ('-audiodev wav,id=a,path=f', 'truncate'),
    ("-audiodev \"{'driver':'wav','id':'a','path':'f'}\"", 'truncate'),
    ('-audio driver=wav,model=ac97', 'truncate'),
    ('-device usb-kbd,pcap=f', 'truncate'),
    ("-device \"{'driver':'usb-kbd','pcap':'f'}\"", 'truncate'),
    # Addresses
    ('-qmp tcp:localhost:1,server=on', 'TCP'), ('-vnc :1', 'TCP'),
    ('-vnc vnc=:1', 'TCP'), ('-display vnc=:1', 'TCP'),
    ('-display vnc=127.0.0.1:7,to=9', 'TCP'), ('-s', 'TCP'),
    ('-serial telnet::1,server', 'TCP'), ('-gdb tcp::1', 'TCP'),
    ('-chardev socket,id=a,host=h,port=1,server=on', 'TCP'),
    ('-spice port=1,disable-ticketing=on', 'TCP'),
    ('-serial unix:x,abstract=on,server=on', 'abstract'),
    ('-chardev socket,id=a,path=x,abstract=on,server=on', 'abstract'),
    ('-chardev socket,id=c,path=p,server=on '
     '-device vhost-user-blk-pci,chardev=c,backend-transfer=off', 'listens'),
    # Networks
    ('-netdev stream,id=n,server=on,addr.type=unix,addr.path=p', 'listens'),
    ("-netdev \"{'type':'stream','server':true}\"", 'listens'),
    ('-netdev dgram,id=n,local.type=unix,local.path=x', 'socket of its own'),
    ('-netdev \'{"type":"dgram","id":"n","local":{"type":"unix"}}\'',
     'socket of its own'),
    ('-netdev dgram,id=n,local.type=inet,local.host=h,local.port=1,'
     'remote.type=inet,remote.host=h,remote.port=2', 'socket of its own'),
    ('-netdev socket,id=n,udp=h:1,localaddr=h:2', 'socket of its own'),
    ('-nic socket,listen=:1', 'socket of its own'),
    ('-netdev socket,id=n,connect=h:1', 'reconnect-ms'),
    ('-netdev stream,id=n,addr.type=unix,addr.path=x', 'reconnect-ms'),
    ("-netdev \"{'type':'stream','server':false,'reconnect-ms':0}\"",
     'reconnect-ms'),
    ('-netdev tap,id=n', 'while the old one has it'),
    ('-nic bridge', 'while the old one has it'),
    ('-netdev vhost-user,id=n,chardev=c', 'back-end'),
    ('-netdev passt,id=n,tcp-ports.0.str=80', 'ports'),
    ('-netdev user,id=n,hostfwd=tcp::1-:2', 'tcp:1 '),
    ('-nic user,hostfwd=udp:1.2.3.4:1-:2', 'udp:1 '),
    ('-net user,hostfwd=::1-:2', 'tcp:1 '),
    ('-netdev user,id=n,guestfwd=tcp:10.0.2.9:80-pipe:p', 'FIFO'),
    ('-netdev user,id=n,guestfwd=tcp:10.0.2.9:80-unix:p,,server', 'listens'),
    ('-nic user,guestfwd=tcp:10.0.2.9:80-stdio', 'terminal'),
    # Devices of the host
    ('-device vfio-pci,host=1', 'unplug'), ('-device usb-host', 'unplug'),
    ('-device vhost-vsock-pci,guest-cid=3', 'unplug'),
    ('-object cryptodev-vhost-user,id=c,chardev=v', 'back-end'),
    ('-tpmdev emulator,id=t,chardev=c', 'TPM'),
)
# What only looks like something that is refused
TAKEN = (
    '-append fd=3 -name stdio', '-device isa-fdc,fdtypeA=144',
    '-chardev socket,id=stdio,path=p', '-name -snapshot',
    '-nographic -nodefaults', '-nographic -serial null -monitor none',
    '-nographic -serial mon:null', '-nographic -serial none -qmp unix:q',
    '-nographic -mon c -device isa-serial,chardev=c',
    '-D log-%d', '-trace enable=x', '-audiodev none,id=a', '-icount shift=7',
    '-icount shift=7,rr=none',
    '-run-with user=nobody', '-run-with exit-with-parent=off',
    '-qmp unix:path=q,server=on', '-display none', '-vnc none',
    '-vnc h:1,reverse=on', '-gdb unix:g,server=on', '-gdb none',
    '-netdev socket,id=n,mcast=230.0.0.1:1', '-nic none',
    '-netdev dgram,id=n,remote.type=inet,remote.host=224.0.0.1,remote.port=1',
    '-netdev stream,id=n,addr.type=unix,addr.path=x,reconnect-ms=1',
    '-netdev user,id=n,guestfwd=tcp:10.0.2.9:80-cmd:prog',
    '-netdev user,id=n,guestfwd=tcp:10.0.2.9:80-tcp:h:1', '-net nic',
    '-netdev user,id=n,tftp=/hostfwd', '-nic passt',
    '-chardev socket,id=c,path=p,server=on '
    '-device vhost-user-blk-pci,chardev=c',
    '-chardev socket,id=c,path=p '
    '-device vhost-user-blk-pci,chardev=c,backend-transfer=off',
)


class Refusing(unittest.TestCase):
    """What cannot be given to a second QEMU is refused"""

    def test_refused(self) -> None:
        """The one message names the option."""
        for text, word in REFUSED:
            found = reasons(text)
            self.assertEqual(len(found), 1, (text, found))
            self.assertIn(word, found[0], text)
            self.assertTrue(any(f"'{option}'" in found[0] for option in
                                CommandLine.parse(shlex.split(text))), found)

    def test_taken(self) -> None:
        """What only looks like it is not."""
        for text in TAKEN:
            self.assertEqual(reasons(text), [], text)

    def test_warned(self) -> None:
        """What the VM loses is said."""
        for text, word in (
                ('-nic user', 'connections'), ('-netdev passt,id=n', 'end'),
                ('-netdev stream,id=n,reconnect-ms=1', 'server'),
                ('-vnc unix:v,password=on', 'password'),
                ('-display vnc=unix:v,password=on', 'password'),
                ('-spice unix=on,addr=s', 'password')):
            options = CommandLine.parse(text.split())
            found, = exclusive.warnings(options)
            self.assertIn(word, found)
        self.assertEqual(exclusive.warnings(CommandLine.parse([
            '-vnc', 'unix:v', '-nic', 'none', '-display', 'none', '-spice',
            'unix=on,addr=s,disable-ticketing=on', '-vnc',
            'unix:w,password-secret=s'])), [])


class Forwards(unittest.TestCase):
    """Ports of the host that are forwarded to the guest"""

    def test_removed(self) -> None:
        """A forward that was removed does not come back."""
        present = {usernet.Port('udp', '1')}
        for before, after in (
                ('user,hostfwd=tcp::1-:2,hostfwd=udp::1-:2,id=n',
                 'user,hostfwd=udp::1-:2,id=n'),
                ("{'type':'user','hostfwd':[{'str':'tcp::1-:2'},"
                 "{'str':'udp::1-:2'}]}",
                 '{"type": "user", "hostfwd": [{"str": "udp::1-:2"}]}')):
            options = CommandLine.parse(['-netdev', before])
            self.assertEqual(len(usernet.reasons(options, present)), 1)
            usernet.drop_removed(options, present)
            self.assertEqual(options.words(), ['-netdev', after])
            self.assertEqual(len(usernet.reasons(options, present)), 1)
            self.assertEqual(usernet.reasons(options, set()), [])

    def test_added(self) -> None:
        """A forward that was added is named."""
        options = CommandLine.parse(['-nic', 'user,hostfwd=tcp::1-:2'])
        found, = usernet.added(options, {usernet.Port('tcp', '1'),
                                         usernet.Port('tcp', '8')})
        self.assertIn('tcp:8', found)


class Servers(unittest.TestCase):
    """Sockets to which the new QEMU connects"""

    def test_gone(self) -> None:
        """A server that has ended, or whose socket is removed."""
        with tempfile.TemporaryDirectory() as folder:
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(f'{folder}/s')
                listener.listen()
                listener.settimeout(0)
                self.assertFalse(servers.is_gone(f'{folder}/s'))
                with self.assertRaises(BlockingIOError):
                    listener.accept()       # it has seen nothing
            self.assertTrue(servers.is_gone(f'{folder}/s'))
            self.assertTrue(servers.is_gone(f'{folder}/other'))
            for text, count in (
                    ('-serial unix:s', 1), ('-chardev socket,id=a,path=s', 1),
                    ('-serial unix:s,server=on', 0),
                    ('-chardev socket,id=a,path=s,reconnect-ms=1', 0),
                    ('-chardev socket,id=a,path=s,abstract=on', 0),
                    ('-chardev socket,id=kept,path=s', 0),
                    ('-serial tcp:h:1', 0), ('-serial file:s', 0)):
                options = CommandLine.parse(text.split())
                self.assertEqual(
                    len(servers.gone(options, folder, {'kept'})), count, text)


# For each of LINES: the options that are refused, and the files of the new
# QEMU (the pid file's included).
OUTCOMES: Dict[str, Tuple[List[str], List[str]]] = {
    'D1': ([], ['qmp.sock']),
    'D2': ([], ['qmp.sock', 'vnc.sock']),
    'D3': ([], ['qmp.sock', 'spice.sock']),
    'D4': (['-netdev'], ['qmp.sock']),
    'D5': ([], ['qmp.sock', '8006.pid', '8006.vnc']),
    'D6': ([], ['qmp.sock', '8006.pid']),
    'D7': (['-qmp'], ['extra-monitor.sock', 'console.sock', 'pid']),
    'D8': ([], ['qmp.sock']),
    'D9': (['-vnc', '-snapshot', '-monitor', '-D', '-net', '-net'],
           ['qemu.pid', 'qmp.sock']),
    'D10': ([], ['qmp.sock']),
    'D11': ([], ['qmp.sock']),
    'D12': ([], ['qmp.sock']),
    'D13': ([], ['vnc.socket', 'qmp.sock']),
    'D14': (['-run-with'], ['qmp.sock', 'qemu.pid']),
    'D15': (['-readconfig', '-D', '-chroot'], ['qemu.pid', 'qmp.sock']),
    'D16': (['-display', '-D'], ['vnc.sock', 'serial.sock', 'qmp.sock']),
    'D17': (['-netdev'], ['windows-10.pid', 'windows-10-monitor.socket',
                          'windows-10-serial.socket', 'qmp.sock']),
    'D18': (['-tpmdev'], ['qmp.sock', 'vm.pid']),
}


class Lines(unittest.TestCase):
    """Command lines that people use"""

    def setUp(self) -> None:
        self.private: List[str] = []

    def rename(self, path: str) -> str:
        """Give a private name to a file, and note its name."""
        self.private.append(Path(path).name)
        return f'/new/{path}'

    def test_lines(self) -> None:
        """Each is possible, or refused for all true reasons at once."""
        seen = []
        for line in LINES.read_text('utf-8').splitlines():
            if line.startswith('#'):
                continue
            head, _, text = line.partition(' ::: ')
            name = head.split()[0]
            seen.append(name)
            refused, files = OUTCOMES[name]
            found = [reason.split()[0].strip("'")
                     for reason in reasons(text)]
            self.assertEqual(found, refused, name)
            options = CommandLine.parse(shlex.split(text))
            self.private.clear()
            rename_files(options, self.rename, self.rename, {
                str(option.keys().get('chardev'))
                for option in options.named('device')
                if option.kind.startswith('vhost-user')})
            self.assertEqual(self.private, files, name)
        self.assertEqual(seen, list(OUTCOMES))


if __name__ == '__main__':
    unittest.main()
