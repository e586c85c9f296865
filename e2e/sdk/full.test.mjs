// The released SDK against a real control plane and real VMs, addressed by E2B_API_URL and E2B_SANDBOX_URL.
// full_test.go starts Wrenn.
import assert from 'node:assert/strict'
import { after, before, describe, test } from 'node:test'
import { CommandExitError, FilesystemEventType, NotFoundError, Sandbox, SandboxNotFoundError } from 'e2b'

const patience = 60_000 // ms: VMs are emulated and the machine may be busy
const metadata = { suite: 'sdk full', odd: 'a b&c=d/ü+%' }
let sandbox

before(async () => {
  sandbox = await Sandbox.create('base', { timeoutMs: 600_000, metadata, envs: { GREETING: 'hello' } })
})

after(async () => {
  await sandbox?.kill()
})

async function until(what, condition) {
  const end = Date.now() + patience
  while (Date.now() < end) {
    const value = await condition()
    if (value) return value
    await new Promise((r) => setTimeout(r, 50))
  }
  assert.fail(`never: ${what}`)
}

async function collect(paginator) {
  const all = []
  while (paginator.hasNext) all.push(...(await paginator.nextItems()))
  return all
}

describe('commands', () => {
  test('output streams while the command runs', async () => {
    const seen = []
    const result = await sandbox.commands.run('echo one; sleep 1; echo two >&2; sleep 1; echo $GREETING', {
      onStdout: (data) => seen.push({ at: Date.now(), data }),
      onStderr: (data) => seen.push({ at: Date.now(), data }),
    })
    assert.equal(result.exitCode, 0)
    assert.equal(result.stdout, 'one\nhello\n')
    assert.equal(result.stderr, 'two\n')
    assert.deepEqual(seen.map((s) => s.data), ['one\n', 'two\n', 'hello\n'])
    assert.ok(seen[2].at - seen[0].at > 1000, 'all output came at the end')
  })

  test('runs as the user, in its home', async () => {
    const result = await sandbox.commands.run('whoami; pwd; uname -s')
    assert.equal(result.stdout, 'user\n/home/user\nLinux\n')
  })

  test('a failing command carries its code and output', async () => {
    await assert.rejects(sandbox.commands.run('echo out; echo err >&2; exit 3'), (err) => {
      assert.ok(err instanceof CommandExitError, err)
      assert.deepEqual([err.exitCode, err.stdout, err.stderr], [3, 'out\n', 'err\n'])
      return true
    })
  })

  test('a background command takes input, is listed, and is killed with its children', async () => {
    const seen = []
    const handle = await sandbox.commands.run('cat & sleep 1000 & while read line; do echo got $line; done; wait', {
      background: true, stdin: true, timeoutMs: 0, onStdout: (data) => seen.push(data),
    })
    await sandbox.commands.sendStdin(handle.pid, 'first\n')
    await until('the echo', () => seen.join('').includes('got first'))
    assert.ok((await sandbox.commands.list()).some((p) => p.pid === handle.pid))
    assert.equal(await handle.kill(), true)
    await assert.rejects(handle.wait(), CommandExitError)
    await until('the end of its child', async () => !(await sandbox.commands.run('pgrep -x sleep || true')).stdout.trim())
    assert.equal(await sandbox.commands.kill(handle.pid), false)
  })
})

describe('terminal', () => {
  test('input, output, resize, end', async () => {
    let screen = ''
    const pty = await sandbox.pty.create({
      cols: 80, rows: 24, timeoutMs: 0, onData: (data) => { screen += Buffer.from(data).toString() },
    })
    const type = (text) => sandbox.pty.sendInput(pty.pid, new TextEncoder().encode(text))
    await type('stty size; tty\n')
    await until('size and name', () => screen.includes('24 80') && screen.includes('/dev/pts/'))
    await sandbox.pty.resize(pty.pid, { cols: 132, rows: 43 })
    await type('stty size\n')
    await until('the new size', () => screen.includes('43 132'))
    await type('exit 5\n')
    await assert.rejects(pty.wait(), (err) => err.exitCode === 5)
  })
})

describe('files', () => {
  test('write, read, list, rename, remove', async () => {
    await sandbox.files.write('dir/a.txt', 'grüße')
    assert.equal(await sandbox.files.read('dir/a.txt'), 'grüße')
    assert.deepEqual((await sandbox.files.list('dir')).map((e) => e.name), ['a.txt'])
    const moved = await sandbox.files.rename('dir/a.txt', 'dir/b.txt')
    assert.equal(moved.path, '/home/user/dir/b.txt')
    assert.equal(moved.owner, 'user')
    assert.equal(await sandbox.files.exists('dir/a.txt'), false)
    await sandbox.files.remove('dir')
    await assert.rejects(sandbox.files.read('dir/b.txt'), NotFoundError)
  })

  test('eight megabytes of bytes come back as they were', async () => {
    const bytes = new Uint8Array(8 << 20).map((_, i) => (i * 2654435761) >>> 13)
    await sandbox.files.write('big.bin', bytes.buffer)
    const back = await sandbox.files.read('big.bin', { format: 'bytes' })
    assert.equal(Buffer.compare(Buffer.from(bytes), Buffer.from(back)), 0)
  })

  test('a watch sees a write', async () => {
    await sandbox.files.makeDir('watched')
    const events = []
    const watch = await sandbox.files.watchDir('watched', (e) => events.push(e))
    await sandbox.files.write('watched/new.txt', 'x')
    await until('the event', () => events.some((e) => e.name === 'new.txt' && e.type === FilesystemEventType.WRITE))
    await watch.stop()
  })
})

describe('sandboxes', () => {
  test('info and list by metadata', async () => {
    const info = await sandbox.getInfo()
    assert.equal(info.state, 'running')
    assert.deepEqual(info.metadata, metadata)
    const mine = await collect(Sandbox.list({ query: { metadata } }))
    assert.deepEqual(mine.map((s) => s.sandboxId), [sandbox.sandboxId])
    assert.deepEqual(await collect(Sandbox.list({ query: { metadata: { suite: 'another' } } })), [])
  })

  test('setTimeout moves the end both ways', async () => {
    for (const ms of [900_000, 300_000]) {
      await sandbox.setTimeout(ms)
      const left = (await sandbox.getInfo()).endAt.getTime() - Date.now()
      assert.ok(Math.abs(left - ms) < 30_000, `${left} ms are left of ${ms}`)
    }
  })

  test('connect finds the running sandbox and its files', async () => {
    await sandbox.files.write('kept.txt', 'kept')
    const again = await Sandbox.connect(sandbox.sandboxId)
    assert.equal(await again.files.read('kept.txt'), 'kept')
    assert.equal(await again.isRunning(), true)
  })

  test('network rules at create and at run time', async () => {
    await sandbox.updateNetwork({ allowOut: ['198.51.100.7', '*.example.com'], denyOut: ({ allTraffic }) => [allTraffic] })
    let info = await sandbox.getInfo()
    assert.deepEqual(info.network.allowOut, ['198.51.100.7', '*.example.com'])
    assert.deepEqual(info.network.denyOut, ['0.0.0.0/0'])
    await assert.rejects(sandbox.updateNetwork({ allowOut: ['example.com'] }), /allowOut.*0\.0\.0\.0\/0/)
    await sandbox.updateNetwork({ allowInternetAccess: false })
    info = await sandbox.getInfo()
    assert.equal(info.allowInternetAccess, false)
    assert.deepEqual(info.network.allowOut, [])
    await sandbox.updateNetwork({})
    await assert.rejects(Sandbox.updateNetwork('inosuch', {}), SandboxNotFoundError)
    await assert.rejects(Sandbox.create('base', { network: { denyOut: ['example.com'] } }), /network\.denyOut\[0\]/)
  })

  test('kill', async () => {
    const other = await Sandbox.create({ template: 'base', network: { denyOut: ['198.51.100.0/24'], allowPublicTraffic: true } })
    assert.deepEqual((await other.getInfo()).network.denyOut, ['198.51.100.0/24'])
    assert.equal(await other.isRunning(), true)
    assert.equal(await other.kill(), true)
    assert.equal(await other.isRunning(), false)
    assert.equal(await Sandbox.kill(other.sandboxId), false)
    await assert.rejects(Sandbox.connect(other.sandboxId), SandboxNotFoundError)
  })

  test('an unknown template is refused by name', async () => {
    await assert.rejects(Sandbox.create('no-such-template'), /no-such-template/)
  })
})
