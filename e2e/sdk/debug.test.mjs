// The released SDK in debug mode: it speaks to envd on localhost:49983 and to nothing else.
// debug_test.go starts envd, its default working directory and HOME in WRENN_TEST_HOME.
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { after, before, describe, test } from 'node:test'
import { CommandExitError, FileType, FilesystemEventType, NotFoundError, Sandbox, TimeoutError } from 'e2b'

const home = process.env.WRENN_TEST_HOME
const patience = 30_000 // ms: the machine may be slow and busy
let sandbox

before(async () => {
  sandbox = await Sandbox.create()
})

// until waits for a condition and says which one never came.
async function until(what, condition) {
  const end = Date.now() + patience
  while (Date.now() < end) {
    const value = await condition()
    if (value) return value
    await new Promise((r) => setTimeout(r, 20))
  }
  assert.fail(`never: ${what}`)
}

// rejects returns the error of a promise that must fail.
async function rejects(promise, type) {
  try {
    await promise
  } catch (err) {
    assert.ok(err instanceof type, `${err.constructor.name}: ${err.message}`)
    return err
  }
  assert.fail('no error')
}

describe('files', () => {
  test('write, read, exists, info, remove', async () => {
    const info = await sandbox.files.write('a/b/hello.txt', 'grüße 🌍')
    assert.deepEqual([info.name, info.type, info.path], ['hello.txt', 'file', `${home}/a/b/hello.txt`])
    assert.equal(await sandbox.files.read('a/b/hello.txt'), 'grüße 🌍')
    assert.equal(await sandbox.files.exists('a/b/hello.txt'), true)
    const got = await sandbox.files.getInfo('a/b/hello.txt')
    assert.equal(got.type, FileType.FILE)
    assert.equal(got.size, Buffer.byteLength('grüße 🌍'))
    assert.equal(got.mode, 0o644)
    assert.equal(got.permissions, '-rw-r--r--')
    assert.ok(Math.abs(got.modifiedTime - Date.now()) < 3_600_000)
    await sandbox.files.remove('a/b/hello.txt')
    assert.equal(await sandbox.files.exists('a/b/hello.txt'), false)
    await sandbox.files.remove('a/b/hello.txt')
    await rejects(sandbox.files.read('a/b/hello.txt'), NotFoundError)
    await rejects(sandbox.files.getInfo('a/b/hello.txt'), NotFoundError)
  })

  test('an empty file in every format', async () => {
    await sandbox.files.write('empty', '')
    assert.equal(await sandbox.files.read('empty'), '')
    assert.equal((await sandbox.files.read('empty', { format: 'bytes' })).length, 0)
    assert.equal((await sandbox.files.read('empty', { format: 'blob' })).size, 0)
  })

  test('overwriting truncates', async () => {
    await sandbox.files.write('short', 'a long first text')
    await sandbox.files.write('short', 'b')
    assert.equal(await sandbox.files.read('short'), 'b')
  })

  test('16 MiB of binary by every way of upload and download', async () => {
    const data = randomBytes(16 << 20)
    const uploads = [{}, { useOctetStream: true }, { gzip: true }]
    for (const opts of uploads) {
      await sandbox.files.write('big.bin', new Blob([data]), opts)
      const back = await sandbox.files.read('big.bin', { format: 'bytes' })
      assert.equal(Buffer.compare(data, Buffer.from(back)), 0, `upload ${JSON.stringify(opts)}`)
    }
    const zipped = await sandbox.files.read('big.bin', { format: 'bytes', gzip: true })
    assert.equal(Buffer.compare(data, Buffer.from(zipped)), 0)
    const chunks = []
    for await (const c of await sandbox.files.read('big.bin', { format: 'stream' })) chunks.push(c)
    assert.equal(Buffer.compare(data, Buffer.concat(chunks)), 0)
  })

  test('a stream as upload', async () => {
    const parts = ['one ', 'two ', 'three']
    const body = new ReadableStream({
      pull(c) {
        parts.length ? c.enqueue(new TextEncoder().encode(parts.shift())) : c.close()
      },
    })
    await sandbox.files.write('streamed', body)
    assert.equal(await sandbox.files.read('streamed'), 'one two three')
  })

  test('several files at once, into directories that do not exist', async () => {
    const files = ['m/1.txt', 'm/deep/er/2.txt', 'm/ünï \'quoted\' \\ name; x=y.txt'].map((path, i) => ({ path, data: `file ${i}` }))
    const infos = await sandbox.files.write(files)
    assert.deepEqual(infos.map((i) => i.path), files.map((f) => `${home}/${f.path}`))
    for (const f of files) assert.equal(await sandbox.files.read(f.path), f.data)
  })

  test('metadata', async () => {
    await sandbox.files.write('meta', 'x', { metadata: { Author: 'me', note: 'a b' } })
    assert.deepEqual((await sandbox.files.getInfo('meta')).metadata, { author: 'me', note: 'a b' })
    await sandbox.files.write('meta', 'x', { metadata: { other: '1' } })
    assert.deepEqual((await sandbox.files.getInfo('meta')).metadata, { other: '1' })
  })

  test('directories: make, list with depth, rename, remove', async () => {
    assert.equal(await sandbox.files.makeDir('tree/sub/leaf'), true)
    assert.equal(await sandbox.files.makeDir('tree/sub'), false)
    await sandbox.files.write('tree/z.txt', 'z')
    const names = async (opts) => (await sandbox.files.list('tree', opts)).map((e) => `${e.type}:${e.path.slice(home.length)}`)
    assert.deepEqual(await names(), ['dir:/tree/sub', 'file:/tree/z.txt'])
    assert.deepEqual(await names({ depth: 2 }), ['dir:/tree/sub', 'dir:/tree/sub/leaf', 'file:/tree/z.txt'])
    const moved = await sandbox.files.rename('tree/sub', 'tree/new/place')
    assert.equal(moved.path, `${home}/tree/new/place`)
    assert.equal(await sandbox.files.exists('tree/sub'), false)
    await rejects(sandbox.files.rename('tree/none', 'tree/x'), NotFoundError)
    await rejects(sandbox.files.list('nowhere'), NotFoundError)
    await sandbox.files.remove('tree')
    assert.equal(await sandbox.files.exists('tree'), false)
  })

  test('a symbolic link tells its target', async () => {
    await sandbox.files.write('pointed', 'at')
    await sandbox.commands.run('ln -s pointed link')
    const info = await sandbox.files.getInfo('link')
    assert.equal(info.type, FileType.FILE)
    assert.equal(info.symlinkTarget, `${home}/pointed`)
  })

  for (const recursive of [false, true]) {
    test(`watch, recursive: ${recursive}`, async () => {
      const dir = `watched-${recursive}`
      await sandbox.files.makeDir(`${dir}/old`)
      const events = []
      const handle = await sandbox.files.watchDir(dir, (e) => void events.push(e), { recursive, includeEntry: true })
      const seen = (name, type) => until(`${type} ${name}`, () => events.find((e) => e.name === name && e.type === type))
      await sandbox.files.write(`${dir}/f`, 'x')
      const created = await seen('f', FilesystemEventType.CREATE)
      assert.equal(created.entry.path, `${home}/${dir}/f`)
      await seen('f', FilesystemEventType.WRITE)
      await sandbox.files.rename(`${dir}/f`, `${dir}/g`)
      await seen('f', FilesystemEventType.RENAME)
      await seen('g', FilesystemEventType.CREATE)
      await sandbox.commands.run(`chmod 600 ${dir}/g && mkdir -p ${dir}/new/er && touch ${dir}/new/er/h ${dir}/old/i && rm ${dir}/g`)
      await seen('g', FilesystemEventType.CHMOD)
      await seen('new', FilesystemEventType.CREATE)
      await seen('g', FilesystemEventType.REMOVE)
      if (recursive) {
        await seen('new/er/h', FilesystemEventType.CREATE)
        await seen('old/i', FilesystemEventType.CREATE)
      } else {
        assert.ok(!events.some((e) => e.name.includes('/')))
      }
      await handle.stop()
    })
  }
})

describe('commands', () => {
  test('output, streamed and whole, and environment', async () => {
    const out = []
    const err = []
    const res = await sandbox.commands.run('echo "$A-$HOME"; echo oops >&2; sleep 0.2; echo späť', {
      envs: { A: 'b' },
      onStdout: (d) => void out.push(d),
      onStderr: (d) => void err.push(d),
    })
    assert.deepEqual([res.exitCode, res.stdout, res.stderr], [0, `b-${home}\nspäť\n`, 'oops\n'])
    assert.equal(out.join(''), res.stdout)
    assert.ok(out.length >= 2)
    assert.equal(err.join(''), 'oops\n')
  })

  test('10 MiB of output arrive whole', async () => {
    const res = await sandbox.commands.run('head -c 10485760 /dev/zero | tr "\\0" x')
    assert.equal(res.stdout.length, 10 << 20)
  })

  test('exit codes, unknown commands, signals', async () => {
    for (const [cmd, code] of [['exit 3', 3], ['no-such-program', 127], ['false', 1]]) {
      const err = await rejects(sandbox.commands.run(cmd), CommandExitError)
      assert.equal(err.exitCode, code, cmd)
    }
    const err = await rejects(sandbox.commands.run('echo partly; kill -9 $$'), CommandExitError)
    assert.equal(err.exitCode, -1)
    assert.equal(err.stdout, 'partly\n')
    assert.match(err.error, /killed/)
  })

  test('working directory', async () => {
    await sandbox.files.makeDir('work')
    assert.equal((await sandbox.commands.run('pwd', { cwd: 'work' })).stdout, `${home}/work\n`)
    assert.equal((await sandbox.commands.run('pwd', { cwd: '/' })).stdout, '/\n')
    const err = await rejects(sandbox.commands.run('pwd', { cwd: '/nowhere' }), Error)
    assert.match(err.message, /nowhere/)
  })

  test('standard input', async () => {
    const cmd = await sandbox.commands.run('cat', { background: true, stdin: true })
    await sandbox.commands.sendStdin(cmd.pid, 'one ')
    await cmd.sendStdin('two')
    await cmd.closeStdin()
    assert.equal((await cmd.wait()).stdout, 'one two')
    assert.equal((await sandbox.commands.run('cat', { stdin: false })).stdout, '')
  })

  test('background, list, connect, kill', async () => {
    const cmd = await sandbox.commands.run('while true; do echo tick; sleep 0.05; done', { background: true })
    const listed = (await sandbox.commands.list()).find((p) => p.pid === cmd.pid)
    assert.equal(listed.cmd, '/bin/bash')
    await cmd.disconnect()
    const again = await sandbox.commands.connect(cmd.pid)
    await until('output after connect', () => again.stdout.includes('tick'))
    assert.equal(await sandbox.commands.kill(cmd.pid), true)
    await rejects(again.wait(), CommandExitError)
    await until('gone from the list', async () => !(await sandbox.commands.list()).some((p) => p.pid === cmd.pid))
    assert.equal(await sandbox.commands.kill(cmd.pid), false)
    await rejects(sandbox.commands.connect(2 ** 22 + 1), NotFoundError)
  })

  test('a timeout ends the program too', async () => {
    await rejects(sandbox.commands.run('echo $$ > pid; exec sleep 300', { timeoutMs: 1000 }), TimeoutError)
    const pid = (await sandbox.files.read('pid')).trim()
    await until('the program is gone', async () => !(await sandbox.files.exists(`/proc/${pid}/cmdline`)))
  })

  test('what a command leaves running neither holds it up nor dies', async () => {
    const res = await sandbox.commands.run('sleep 300 & echo $!')
    const pid = res.stdout.trim()
    assert.equal(await sandbox.files.exists(`/proc/${pid}`), true)
    await sandbox.commands.run(`kill ${pid}`)
  })

  test('files below /proc have their content', async () => {
    assert.match(await sandbox.files.read('/proc/self/status'), /Name:\s+envd/)
  })
})

describe('pty', () => {
  test('create, input, resize, reconnect, kill', async () => {
    let shown = ''
    const collect = (data) => void (shown += new TextDecoder().decode(data))
    const pty = await sandbox.pty.create({ cols: 100, rows: 30, onData: collect, timeoutMs: 0 })
    const type = (line) => sandbox.pty.sendInput(pty.pid, new TextEncoder().encode(line + '\n'))
    await type('echo size=$(stty size) term=$TERM')
    await until('the size', () => shown.includes('size=30 100 term=xterm-256color'))
    await sandbox.pty.resize(pty.pid, { cols: 120, rows: 40 })
    await type('echo now=$(stty size)')
    await until('the new size', () => shown.includes('now=40 120'))
    await pty.disconnect()
    await type('echo left=$((20+3))')
    let again = ''
    const second = await sandbox.pty.connect(pty.pid, { onData: (d) => void (again += new TextDecoder().decode(d)), timeoutMs: 0 })
    await until('what was shown while nobody watched', () => again.includes('left=23'))
    assert.ok(again.includes('size=30 100'), 'earlier output is replayed')
    await type('echo live=$((40+2))')
    await until('live output', () => again.includes('live=42'))
    assert.equal(await sandbox.pty.kill(pty.pid), true)
    await rejects(second.wait(), CommandExitError)
  })

  test('exit ends it', async () => {
    const pty = await sandbox.pty.create({ cols: 80, rows: 24, onData: () => {}, timeoutMs: 0 })
    await sandbox.pty.sendInput(pty.pid, new TextEncoder().encode('exit\n'))
    assert.equal((await pty.wait()).exitCode, 0)
  })
})

describe('git', () => {
  test('a repository from init to push and clone', async () => {
    const git = sandbox.git
    await git.configureUser('Test', 'test@example.com')
    assert.equal(await git.getConfig('user.name'), 'Test')
    await git.init('repo', { initialBranch: 'main' })
    await sandbox.files.write('repo/a.txt', 'one')
    let status = await git.status('repo')
    assert.deepEqual(status.fileStatus.map((f) => f.name), ['a.txt'])
    await git.add('repo')
    await git.commit('repo', 'first')
    status = await git.status('repo')
    assert.equal(status.currentBranch, 'main')
    assert.equal(status.fileStatus.length, 0)
    await git.createBranch('repo', 'side')
    await git.checkoutBranch('repo', 'main')
    const branches = await git.branches('repo')
    assert.deepEqual([branches.currentBranch, branches.branches.toSorted()], ['main', ['main', 'side']])
    await git.deleteBranch('repo', 'side')
    await git.init('bare', { bare: true, initialBranch: 'main' })
    await git.remoteAdd('repo', 'origin', `${home}/bare`)
    assert.equal(await git.remoteGet('repo', 'origin'), `${home}/bare`)
    await git.push('repo', { remote: 'origin', branch: 'main', setUpstream: true })
    await git.clone(`${home}/bare`, { path: 'copy' })
    assert.equal(await sandbox.files.read('copy/a.txt'), 'one')
    await sandbox.files.write('repo/a.txt', 'two')
    await git.add('repo')
    await git.commit('repo', 'second')
    await git.push('repo', { remote: 'origin', branch: 'main' })
    await git.pull('copy', { remote: 'origin', branch: 'main' })
    assert.equal(await sandbox.files.read('copy/a.txt'), 'two')
    await sandbox.files.write('repo/a.txt', 'three')
    await git.restore('repo', { paths: ['a.txt'] })
    assert.equal(await sandbox.files.read('repo/a.txt'), 'two')
    await git.reset('repo', { mode: 'hard', target: 'HEAD~1' })
    assert.equal(await sandbox.files.read('repo/a.txt'), 'one')
  })
})

after(async () => {
  await sandbox?.kill()
})
