// node --test tests/js
import assert from "node:assert/strict"
import { test } from "node:test"
import { Runs, difference, ladder, mark, next, pictures, story, streams } from "../../web/runs.js"

const trial = (changes = {}) => ({
  trial: "0", kind: "sample", steps: 50, window: [8, 14], decidable: true, step: 0, trace: [], verdict: null, pictures: [],
  size: null, ...changes,
})
const state = (changes = {}) => ({
  id: "a", node: "7", created: 1, sequence: 1, live: true, message: null, settings: {}, trials: [], report: null, ...changes,
})

test("events add up to the state", () => {
  let now = next(undefined, "start", { run: "a", sequence: 1, state: state() })
  now = next(now, "trial", { sequence: 2, index: 0, trial: trial(), settings: { tau: 0.2 } })
  now = next(now, "step", { sequence: 3, index: 0, step: 1, scored: true, score: 0.1, pictured: true, size: [5, 64, 64] })
  const before = now
  now = next(now, "step", { sequence: 4, index: 0, step: 2, scored: true, score: null, pictured: false, size: null })
  now = next(now, "verdict", { sequence: 5, index: 0, step: 50, verdict: { accepted: false } })
  now = next(now, "end", { sequence: 6, message: null, report: { nfe: 11 } })
  assert.deepEqual(now.trials[0].trace, [[1, 0.1], [2, null]])
  assert.deepEqual(pictures(now), [{ trial: 0, step: 1 }])
  assert.deepEqual(now.trials[0].size, [5, 64, 64])
  assert.equal(now.trials[0].decidable, false)
  assert.equal(now.trials[0].step, 50, "progress reaches the end also where not every step was told")
  assert.equal(now.report.nfe, 11)
  assert.equal(now.live, false)
  assert.equal(before.trials[0].trace.length, 1, "states are not changed in place")
})

test("while a run waits for a person, the seconds that are left are told", () => {
  const waiting = state({ offered: { trials: [0], best: [0], until: 9, left: null } })
  assert.deepEqual(next(waiting, "wait", { sequence: 2, seconds: 7 }).offered, { trials: [0], best: [0], until: 9, left: 7 })
})

test("a run's sign tells of its end", () => {
  const sign = (report, changes = {}) => mark(state({ live: false, settings: { tau: 0.2 }, report, ...changes }))
  assert.equal(sign({ accepted: false, final_score: 0.3 }), "✓", "rejected at first, and what was delivered matches")
  assert.equal(sign({ accepted: true, final_score: 0.1 }), "✗", "passed, and ended below")
  assert.equal(sign({ accepted: false, final_score: null }), "✗")
  assert.equal(sign({ accepted: null, final_score: null }), "–")
  assert.equal(sign({ accepted: true, final_score: 0.3 }, { message: "stopped" }), "–")
  assert.equal(sign(null, { live: true }), "●")
  assert.equal(sign(null), "–")
})

test("the pictures of a trial that searches come after its candidates'", () => {
  const [own, one, next] = [trial({ pictures: [9] }), trial({ kind: "search", pictures: [3] }), trial({ kind: "probe", pictures: [1] })]
  assert.deepEqual(pictures(state({ trials: [own, one, one, next] })).map((each) => each.trial), [1, 2, 0, 3])
})

test("a missed event is noticed", () => {
  assert.equal(next(state(), "step", { sequence: 3, index: 0, step: 1 }), null)
  assert.equal(next(undefined, "step", { sequence: 1, index: 0, step: 1 }), null)
})

test("what was missed is asked for, once", async () => {
  const asked = []
  const runs = new Runs(async (path) => (asked.push(path), state({ sequence: 9 })))
  const changes = []
  runs.addEventListener("change", ({ detail }) => changes.push(detail))
  await Promise.all([runs.receive("step", { run: "a", sequence: 5 }), runs.receive("step", { run: "a", sequence: 6 })])
  assert.deepEqual(asked, ["/foresight/runs/a"])
  assert.equal(runs.states.get("a").sequence, 9)
  assert.deepEqual(changes, ["a"])
})

test("an answer older than the events is left aside", async () => {
  let answer
  const runs = new Runs(() => new Promise((resolve) => (answer = resolve)))
  const loading = runs.load("a")
  runs.receive("start", { run: "a", state: state({ sequence: 4 }) })
  answer(state({ sequence: 2 }))
  await loading
  assert.equal(runs.states.get("a").sequence, 4)
})

test("a run that the server has dropped is forgotten", async () => {
  let status = 500
  const runs = new Runs(async () => { throw Object.assign(new Error("no"), { status }) })
  runs.receive("start", { run: "a", state: state() })
  await runs.receive("step", { run: "a", sequence: 7 })
  assert.equal(runs.states.size, 1, "a server that is away may come back")
  status = 404
  await runs.receive("step", { run: "a", sequence: 8 })
  assert.equal(runs.states.size, 0)
})

test("after a reload everything comes back in order", async () => {
  const all = { a: state(), b: state({ id: "b", created: 2, node: "9" }) }
  const runs = new Runs(async (path) =>
    path === "/foresight/runs" ? { runs: [{ id: "b", live: true }, { id: "a", live: false }] } : all[path.split("/").at(-1)])
  runs.states.set("gone", state({ id: "gone" }))
  await runs.refresh()
  assert.deepEqual([...runs.states.keys()], ["a", "b"])
  assert.equal(runs.newest.id, "b")
  assert.equal(runs.ofNode("7").id, "a")
})

test("a stream is told by its chunks and their draws", () => {
  const draw = (chunk, number, more) => trial({ trial: `${chunk}.${number}`, kind: "chunk", steps: 4, details: { chunk, draw: number }, ...more })
  const trials = [
    draw(0, 0, { verdict: { accepted: true, predicted_score: 0.25 } }), draw(1, 0, { verdict: { accepted: false, predicted_score: 0.1 } }),
    draw(1, 1, { step: 2, trace: [[2, 0.21]] }), draw(1, 0, { verdict: { accepted: true, predicted_score: 0.1 } }),
  ]
  assert.equal(streams(state({ trials })), true)
  assert.equal(streams(state({ trials: [trial({})] })), false)
  assert.deepEqual(trials.map((each) => story(each, 0.22)), [
    "Chunk 0, draw 0: kept, score 0.250", "Chunk 1, draw 0: taken back, score 0.100", "Chunk 1, draw 1: step 2 of 4, score 0.210",
    "Chunk 1, draw 0: kept, score 0.100, still below 0.220",
  ])
})

test("the ladder shows where a run is", () => {
  const trials = [
    trial({ verdict: { accepted: false } }), trial({ trial: "1", kind: "probe", verdict: { accepted: false } }),
    trial({ trial: "2", kind: "refine" }),
  ]
  assert.deepEqual(ladder(state({ trials })), { 0: "rejected", 1: "rejected", 2: "current", "2->1": "waiting" })
})

test("a clip from an injected frame is done, not accepted: nobody judges it", () => {
  const trials = [
    trial({ verdict: { accepted: false, rule: "early_reject" } }),
    trial({ trial: "1", kind: "probe", verdict: { accepted: true, rule: "early_accept" } }),
  ]
  assert.equal(ladder(state({ trials }))[1], "current")
  trials.push(trial({ trial: "1", kind: "inject", verdict: { accepted: true, rule: null } }))
  assert.deepEqual(ladder(state({ trials, live: false })), { 0: "rejected", 1: "done", 2: "waiting", "2->1": "waiting" })
})

test("a probe is measured against the rejected clip, not against tau", () => {
  const verdict = { accepted: true, rule: "early_reject", predicted_score: 0.11, details: { better_by_delta: false }, message: null }
  assert.equal(story(trial({ trial: "2->1", kind: "probe", verdict }), 0.22),
    "Trial 2→1, single frame: used all the same, predicted score 0.110")
})

test("stories are plain sentences", () => {
  const verdict = { accepted: false, rule: "early_reject", stop_step: 11, predicted_score: 0.1, message: null }
  assert.equal(story(trial({ verdict }), 0.22),
    "Trial 0, clip: rejected at step 11 of 50, stays below the threshold, predicted score 0.100 (wanted 0.220)")
  assert.equal(story(trial({ step: 3, trace: [[3, 0.15]] })), "Trial 0, clip: step 3 of 50, score 0.150")
  const drawn = { accepted: true, prompt: "a ring", details: { seed: 100004 } }
  assert.equal(story(trial({ trial: "2", kind: "refine", verdict: drawn })), "Trial 2, other noise: drawn")
  assert.equal(story(trial({ trial: "2->1", kind: "inject", verdict: { accepted: true } })), "Trial 2→1, clip from the frame: done")
})

test("a refined prompt reads as a difference", () => {
  assert.deepEqual(difference("a red circle moves left", "(a red circle:1.3), moves left"), [
    ["gone", "a"], ["new", "(a"], ["same", "red"], ["gone", "circle"], ["new", "circle:1.3),"], ["same", "moves left"],
  ])
  assert.deepEqual(difference("same words", "same words"), [["same", "same words"]])
  assert.deepEqual(difference("", "all new"), [["new", "all new"]])
})
