// The released SDK's pauses, snapshots and forks against a real control plane and real VMs. pause_test.go starts
// Wrenn and runs this file once for each way of addressing sandboxes: by E2B_SANDBOX_URL, and by host name
// (WRENN_TEST_NAMES), for which every name leads to this machine.
import assert from 'node:assert/strict'
import dns from 'node:dns'
import { after, before, describe, test } from 'node:test'
import { NotFoundError, Sandbox, SandboxNotFoundError } from 'e2b'

if (process.env.WRENN_TEST_NAMES) {
  dns.lookup = (name, options, callback) => {
    if (typeof options === 'function') [options, callback] = [{}, options]
    process.nextTick(() => (options.all ? callback(null, [{ address: '127.0.0.1', family: 4 }]) : callback(null, '127.0.0.1', 4)))
  }
}

const patience = 120_000 // ms: VMs are emulated and the machine may be busy
const life = 900_000
const requestTimeoutMs = 300_000
const metadata = { suite: `sdk pause ${process.pid}` }

async function until(what, condition) {
  const end = Date.now() + patience
  while (Date.now() < end) {
    const value = await condition()
    if (value) return value
    await new Promise((r) => setTimeout(r, 100))
  }
  assert.fail(`never: ${what}`)
}

async function collect(paginator) {
  const all = []
  while (paginator.hasNext) all.push(...(await paginator.nextItems()))
  return all
}

const output = async (sandbox, command) => (await sandbox.commands.run(command, { timeoutMs: patience })).stdout.trim()
const pause = (sandbox, opts) => sandbox.pause({ ...opts, requestTimeoutMs })
const connect = (sandbox, opts) => Sandbox.connect(sandbox.sandboxId, { requestTimeoutMs, timeoutMs: life, ...opts })
const create = (template, opts) => Sandbox.create(template, { requestTimeoutMs, timeoutMs: life, metadata, ...opts })
const states = async (state) => (await collect(Sandbox.list({ query: { metadata, state } }))).map((s) => s.sandboxId)

after(async () => {
  for (const s of await collect(Sandbox.list({ query: { metadata } }))) await Sandbox.kill(s.sandboxId)
})

describe('pause and connect', () => {
  let sandbox

  before(async () => {
    sandbox = await create('base', { envs: { GREETING: 'hello' } })
  })

  test('processes, memory, environment and a terminal go on', async () => {
    const counter = await sandbox.commands.run('n=0; while true; do n=$((n+1)); echo $n > /dev/shm/count; sleep 0.1; done', { background: true, timeoutMs: 0 })
    let screen = ''
    const onData = (data) => { screen += Buffer.from(data).toString() }
    const pty = await sandbox.pty.create({ cols: 80, rows: 24, timeoutMs: 0, onData })
    const type = (text) => sandbox.pty.sendInput(pty.pid, new TextEncoder().encode(text))
    await type('secret=$((40+2))\n')
    const count = Number(await until('a count', () => output(sandbox, 'cat /dev/shm/count || true'))) // it may not have begun
    const boot = await output(sandbox, 'cat /proc/sys/kernel/random/boot_id')

    assert.equal(await pause(sandbox), true)
    assert.equal(await pause(sandbox), false)
    assert.equal((await sandbox.getInfo()).state, 'paused')
    assert.equal(await sandbox.isRunning(), false)
    assert.ok((await states(['paused'])).includes(sandbox.sandboxId))
    assert.ok(!(await states(['running'])).includes(sandbox.sandboxId))

    const again = await connect(sandbox)
    assert.equal((await again.getInfo()).state, 'running')
    assert.equal(await output(again, 'cat /proc/sys/kernel/random/boot_id'), boot)
    assert.ok((await again.commands.list()).some((p) => p.pid === counter.pid))
    await until('the counter to go on', async () => Number(await output(again, 'cat /dev/shm/count')) > count + 3)
    assert.equal(await output(again, 'echo $GREETING'), 'hello')
    // The object from before the pause works too: the token is the same.
    assert.equal(await output(sandbox, 'echo same'), 'same')
    screen = ''
    await again.pty.connect(pty.pid, { onData, timeoutMs: 0 })
    await again.pty.sendInput(pty.pid, new TextEncoder().encode('echo secret=$secret\n'))
    await until('the terminal', () => screen.includes('secret=42'))
    assert.equal(await again.commands.kill(counter.pid), true)
    assert.equal(await again.pty.kill(pty.pid), true)
  })

  test('five rounds lose no file', async () => {
    for (let round = 1; round <= 5; round++) {
      await sandbox.commands.run(`head -c 200000 /dev/urandom >> grown && sha256sum grown > sums-${round}`, { timeoutMs: patience })
      assert.equal(await pause(sandbox), true)
      await connect(sandbox)
      assert.equal(await output(sandbox, `sha256sum -c sums-${round} && stat -c %s grown`), `grown: OK\n${200000 * round}`)
    }
  })

  test('the clock is right afterwards', async () => {
    await pause(sandbox)
    await new Promise((r) => setTimeout(r, 5000))
    await connect(sandbox)
    const from = Date.now()
    const there = Number(await output(sandbox, 'date +%s%3N'))
    assert.ok(there > from - 500 && there < Date.now() + 500, `${there} is not between ${from} and ${Date.now()}`)
  })

  test('connect extends the end and never shortens it, and changes nothing else', async () => {
    await sandbox.setTimeout(600_000)
    await connect(sandbox, { timeoutMs: 60_000 })
    const left = async () => (await sandbox.getInfo()).endAt.getTime() - Date.now()
    assert.ok((await left()) > 500_000)
    await pause(sandbox)
    await connect(sandbox, { timeoutMs: 800_000 })
    assert.ok(Math.abs((await left()) - 800_000) < 60_000)
    assert.deepEqual((await sandbox.getInfo()).lifecycle, { onTimeout: 'kill', autoResume: false })
  })

  for (const [what, pausing, connecting] of [
    ['a pause without memory', { keepMemory: false }, {}],
    ['a connect that reboots', {}, { onResume: 'reboot' }],
  ]) {
    test(`${what} boots anew and keeps files and tokens`, async () => {
      await sandbox.files.write('kept.txt', what)
      await sandbox.commands.run('sync; echo volatile > /dev/shm/lost', { timeoutMs: patience })
      const boot = await output(sandbox, 'cat /proc/sys/kernel/random/boot_id')
      assert.equal(await pause(sandbox, pausing), true)
      await connect(sandbox, connecting)
      assert.notEqual(await output(sandbox, 'cat /proc/sys/kernel/random/boot_id'), boot)
      assert.equal(await sandbox.files.read('kept.txt'), what)
      assert.equal(await sandbox.files.exists('/dev/shm/lost'), false)
      assert.equal(await output(sandbox, 'echo $GREETING'), 'hello')
    })
  }

  test('a paused sandbox is killed', async () => {
    await pause(sandbox)
    assert.equal(await sandbox.kill(), true)
    assert.equal(await Sandbox.kill(sandbox.sandboxId), false)
    await assert.rejects(connect(sandbox), SandboxNotFoundError)
    await assert.rejects(pause(sandbox), SandboxNotFoundError)
  })
})

describe('lifecycle', () => {
  test('at its end a sandbox is paused, with what it had', async () => {
    const sandbox = await create('base', { timeoutMs: 60_000, lifecycle: { onTimeout: 'pause' } })
    assert.deepEqual((await sandbox.getInfo()).lifecycle, { onTimeout: 'pause', autoResume: false })
    await sandbox.commands.run('echo here > /dev/shm/here; echo there > there', { timeoutMs: patience })
    await sandbox.setTimeout(1000)
    await until('the pause', async () => (await sandbox.getInfo()).state === 'paused')
    await connect(sandbox)
    assert.equal(await output(sandbox, 'cat /dev/shm/here there'), 'here\nthere')
    assert.deepEqual((await sandbox.getInfo()).lifecycle, { onTimeout: 'pause', autoResume: false })
    await sandbox.kill()
  })

  test('traffic resumes it where it was created so', async () => {
    const sandbox = await create('base', { lifecycle: { onTimeout: 'pause', autoResume: true } })
    await sandbox.commands.run('cd /tmp && echo served > page && python3 -m http.server 8000', { background: true, timeoutMs: 0 })
    const visit = () => process.env.WRENN_TEST_NAMES
      ? fetch(`https://${sandbox.getHost(8000)}/page`)
      : fetch(`${process.env.E2B_SANDBOX_URL}/page`, { headers: { 'E2b-Sandbox-Id': sandbox.sandboxId, 'E2b-Sandbox-Port': '8000' } })
    await until('the server', async () => (await visit()).status === 200)
    await pause(sandbox)
    // By emulation a resume may take longer than the door waits, which then says so.
    const page = await until('the page', async () => {
      const response = await visit()
      return response.status === 200 && response.text()
    })
    assert.equal(page, 'served\n')
    const info = await sandbox.getInfo()
    assert.equal(info.state, 'running')
    assert.ok(info.endAt.getTime() - Date.now() > 200_000, 'at least 300 s from then')
    await sandbox.kill()
  })

  test('traffic resumes nothing else', async () => {
    const sandbox = await create('base')
    await pause(sandbox)
    assert.equal(await sandbox.isRunning(), false)
    assert.equal((await sandbox.getInfo()).state, 'paused')
    await sandbox.kill()
  })

  test('what excludes each other is refused', async () => {
    await assert.rejects(create('base', { lifecycle: { onTimeout: { action: 'pause', keepMemory: false }, autoResume: true } }))
    await assert.rejects(create('base', { lifecycle: { onTimeout: 'kill', autoResume: true } }))
  })
})

describe('snapshots and forks', () => {
  let sandbox

  before(async () => {
    sandbox = await create('base', { envs: { GREETING: 'hello' } })
    await sandbox.commands.run('echo volatile > /dev/shm/note; echo kept > note', { timeoutMs: patience })
  })

  const isCopy = async (copy) => assert.equal(await output(copy, 'cat /dev/shm/note note; echo $GREETING'), 'volatile\nkept\nhello')
  const identity = async (copy) => (await output(copy, 'cat /etc/machine-id; hostname; head -c 16 /dev/urandom | sha256sum')).split('\n')

  test('many start from a snapshot, at once, each one its own', async () => {
    const name = `sdk-${process.pid}`
    const snapshot = await sandbox.createSnapshot({ name, requestTimeoutMs })
    assert.equal(snapshot.snapshotId, `${name}:default`)
    assert.deepEqual(snapshot.names, [`${name}:default`])
    await isCopy(sandbox) // it goes on
    const copies = await Promise.all([1, 2].map(() => create(snapshot.snapshotId)))
    for (const copy of copies) await isCopy(copy)
    const identities = await Promise.all([sandbox, ...copies].map(identity))
    for (const [i, what] of ['machine-id', 'host name', 'randomness'].entries()) {
      assert.equal(new Set(identities.map((lines) => lines[i])).size, 3, `two share their ${what}`)
    }
    await copies[0].files.write('note', 'changed')
    assert.equal(await copies[1].files.read('note'), 'kept\n')
    await assert.rejects(Sandbox.deleteSnapshot(snapshot.snapshotId), /in use/)
    for (const copy of copies) await copy.kill()
    assert.equal(await Sandbox.deleteSnapshot(snapshot.snapshotId), true)
    assert.equal(await Sandbox.deleteSnapshot(snapshot.snapshotId), false)
    await assert.rejects(create(snapshot.snapshotId), /404/)
  })

  test('snapshots are listed, by sandbox and by name, in pages', async () => {
    const name = `sdk-list-${process.pid}`
    const made = []
    for (const opts of [{ name }, { name: `${name}:v2` }, {}]) made.unshift((await sandbox.createSnapshot({ ...opts, requestTimeoutMs })).snapshotId)
    const ids = async (opts) => (await collect(Sandbox.listSnapshots(opts))).map((s) => s.snapshotId).filter((id) => made.includes(id))
    assert.deepEqual(await ids({ sandboxId: sandbox.sandboxId }), made)
    assert.deepEqual(await ids({ sandboxId: sandbox.sandboxId, limit: 1 }), made)
    assert.deepEqual(await ids({ name }), [`${name}:v2`, `${name}:default`])
    assert.deepEqual(await ids({ name: `${name}:v2` }), [`${name}:v2`])
    const copy = await create(made[0])
    await isCopy(copy)
    await copy.kill()
    for (const id of made) assert.equal(await Sandbox.deleteSnapshot(id), true)
    assert.deepEqual(await ids({ sandboxId: sandbox.sandboxId }), [])
  })

  test('a snapshot survives its sandbox, also of a paused one', async () => {
    const source = await create('base')
    await source.files.write('from', 'source')
    await pause(source)
    const { snapshotId } = await source.createSnapshot({ requestTimeoutMs })
    await source.kill()
    const copy = await create(snapshotId)
    assert.equal(await copy.files.read('from'), 'source')
    await copy.kill()
    assert.equal(await Sandbox.deleteSnapshot(snapshotId), true)
  })

  test('a fork is a copy of its own', async () => {
    const end = (await sandbox.getInfo()).endAt.getTime()
    const forks = await sandbox.fork({ count: 2, timeoutMs: 300_000, requestTimeoutMs })
    assert.equal(forks.length, 2)
    for (const fork of forks) {
      assert.ok(fork instanceof Sandbox, fork)
      await isCopy(fork)
      assert.deepEqual((await fork.getInfo()).metadata, metadata)
    }
    await forks[0].files.write('note', 'changed')
    assert.equal(await forks[1].files.read('note'), 'kept\n')
    await isCopy(sandbox)
    assert.equal((await sandbox.getInfo()).endAt.getTime(), end)
    for (const fork of forks) await fork.kill()
    const left = await collect(Sandbox.listSnapshots({ sandboxId: sandbox.sandboxId }))
    assert.deepEqual(left.filter((s) => s.names.length === 0), [])
  })

  test('what is not there', async () => {
    await assert.rejects(Sandbox.fork('inosuch'), NotFoundError)
    await assert.rejects(Sandbox.createSnapshot('inosuch'), SandboxNotFoundError)
    await assert.rejects(Sandbox.pause('inosuch'), SandboxNotFoundError)
    assert.equal(await Sandbox.deleteSnapshot('no-such-snapshot'), false)
    await assert.rejects(sandbox.createSnapshot({ name: '../escape' }), /name/)
  })
})
