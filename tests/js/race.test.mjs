// The candidates of a race as the panel tells of them.
import assert from "node:assert/strict"
import { readFileSync } from "node:fs"
import { afterEach, test } from "node:test"
import { candidates, measured, outcome, races, rules, words } from "../../web/race.js"
import { current } from "../../web/runs.js"
import { say, speak } from "../../web/words.js"

const SETTINGS = { plan: "race", look_step: 6, steps: 50, looks: [{ step: 6, floor: 0.2, floor_self_refined: 0.25 }] }
const details = (number) => ({ candidate: number, seed: 6 + number, self_refined: number > 1, floor: number > 1 ? 0.25 : 0.2 })
const trial = (number, changes = {}) => ({
  trial: `candidate ${number}`, kind: "candidate", steps: 50, window: [6, 6], decidable: true, details: details(number), step: 6,
  trace: [[6, 0.1]], verdict: null, pictures: [2, 6], size: [5, 64, 64], ...changes,
})
const aside = (number, score = 0.1, changes = {}) => trial(number, {
  trace: [[6, score]], verdict: { accepted: false, predicted_score: score, rule: "below_floor", nfe: 6 }, ...changes })
const finished = (number, kind = "finish") => trial(number, {
  kind, step: 50, trace: kind === "finish" ? [] : [[6, 0.3]], pictures: [],
  verdict: { accepted: true, predicted_score: kind === "finish" ? null : 0.3, nfe: kind === "finish" ? 44 : 50 } })
const told = (candidate, state, nfe, by_hand = null) => ({ candidate, state, nfe, by_hand })
const run = (trials, changes = {}) => ({ id: "a", live: true, settings: SETTINGS, trials, report: null, ...changes })
const ended = (trials, ...rows) => run(trials, { live: false, report: { candidates: rows } })
const states = (state) => candidates(state).map((row) => row.state)
afterEach(() => speak({}, "en"))

test("candidates are rows with their look, score, floor, state and evaluations", () => {
  const state = run([aside(1), trial(2, { step: 4, trace: [], pictures: [3] })])
  const [first, second] = candidates(state)
  assert.deepEqual([first.number, first.seed, first.selfRefined, first.score, first.floor, first.nfe, first.state],
    [1, 7, false, 0.1, 0.2, 6, "aside"])
  assert.deepEqual(first.shown, [0, 6])
  assert.deepEqual([second.selfRefined, second.live, second.score, second.nfe, second.state], [true, true, null, 4, "looking"])
  assert.deepEqual(second.shown, [1, 3], "the nearest picture to the look")
  assert.equal(words(second), "being looked at: step 4, the look is at 6")
  assert.equal(measured(first), "score 0.100, floor 0.200")
  assert.equal(measured(second), "")
})

test("a candidate passes, goes on, is finished, and is delivered", () => {
  const passing = trial(1, { step: 20, trace: [[6, 0.3]] })
  assert.deepEqual(states(run([passing])), ["passed"])
  assert.equal(words(candidates(run([passing]))[0]), "passed, being finished: step 20 of 50")
  const again = trial(1, { kind: "finish", step: 30, trace: [], pictures: [] })
  const [first, second] = candidates(run([aside(1), aside(2), again]))
  assert.deepEqual([first.state, first.nfe, first.score, second.state], ["finishing", 6 + 24, 0.1, "aside"])
  assert.equal(words(first), "goes on to its end: step 30 of 50")
  assert.deepEqual(states(run([finished(1, "candidate")])), ["finished"])
  assert.deepEqual(states(ended([finished(1, "candidate")], told(1, "delivered", 50))), ["delivered"])
  assert.deepEqual(states(run([trial(1, { step: 3 })], { live: false })), ["stopped"])
})

test("what a person has decided is said", () => {
  const state = run([aside(1, null, { verdict: { accepted: false, predicted_score: null, rule: "user_reject", nfe: 2 }, trace: [] })])
  assert.equal(words(candidates(state)[0]), "put aside by you")
  assert.equal(measured(candidates(state)[0]), "not scored")
})

test("what is delivered, and why", () => {
  const one = [finished(1, "candidate")]
  assert.equal(outcome(run(one)), "")
  assert.equal(outcome(ended(one, told(1, "delivered", 50))), "Passed: your own run, not touched.")
  const passed = ended([aside(1), finished(2, "candidate")], told(1, "put aside", 6), told(2, "delivered", 55))
  assert.equal(outcome(passed), "Candidate 2 of 2 passed: it is delivered.")
  const best = [aside(1), aside(2), finished(1)]
  assert.match(outcome(ended(best, told(1, "delivered", 50), told(2, "put aside", 6))), /^None of 2 passed.* still below\.$/)
  assert.match(outcome(ended(best, told(1, "delivered", 50), told(2, "finished", 50))), /better of two/)
  const ranks = best.map((each) => ({ ...each, details: { ...each.details, floor: null } }))
  assert.match(outcome(ended(ranks, told(1, "delivered", 50), told(2, "put aside", 6))), /best score at its look/)
  assert.match(outcome(ended(one, told(1, "delivered", 50, "accepted"))), /^You accepted candidate 1/)
  assert.match(outcome(ended([aside(1), finished(1)], told(1, "delivered", 50, "rejected"))), /^You put every candidate aside/)
})

test("a search's candidates are rows from their first check on, and the winner is chosen", () => {
  const one = (index, changes) => ({
    trial: `candidate ${index}`, kind: "search", steps: 50, step: 11, details: { candidate: index, seed: 7 + index, look_step: 21 },
    trace: [[11, 0.1 + index]], pictures: [11], size: [5, 64, 64], verdict: null, ...changes })
  const base = { trial: "0", kind: "sample", steps: 50, step: 0, trace: [], pictures: [], details: {}, verdict: null }
  const settings = { ...SETTINGS, plan: undefined, look_step: undefined }
  const live = run([base, one(0), one(1, { step: 0, trace: [], pictures: [] })], { settings })
  assert.deepEqual(candidates(live).map((row) => [row.number, row.state, row.live, row.score]),
    [[0, "looking", true, 0.1], [1, "looking", true, null]])
  assert.equal(current(live).trial, "candidate 1")
  const over = { accepted: false, predicted_score: null, rule: null, nfe: 11 }
  const done = run([base, one(0, { verdict: over }), one(1, { verdict: { ...over, accepted: true, nfe: 21 } })], { settings })
  assert.deepEqual(candidates(done).map((row) => [words(row), row.nfe, row.shown?.[0]]), [["put aside", 11, 1], ["chosen by the search", 21, 2]])
  assert.equal(current(done).trial, "0")
  assert.equal(outcome({ ...done, live: false }), "", "nobody says that a searched clip was not touched")
  assert.match(rules(done), /those of low reward are dropped/)
})

test("nothing claims a self-refined or later candidate to be untouched", () => {
  const refined = finished(1, "candidate")
  refined.details.self_refined = true
  assert.doesNotMatch(outcome(ended([refined], told(1, "delivered", 55))), /touched/)
})

test("how candidates are judged is said in one sentence", () => {
  assert.match(rules(run([])), /Below its floor it is put aside/)
  assert.match(rules(run([], { settings: { ...SETTINGS, looks: [{ step: 6, floor: null, floor_self_refined: null }] } })), /the best one goes on/)
  assert.match(rules(run([], { settings: { ...SETTINGS, plan: "audition", keep: 2 } })), /the best 2 go on/)
  assert.equal(races(run([{ kind: "sample" }])), false)
})

test("the panel speaks the page's language, and English where it has no other", () => {
  const file = (name) => JSON.parse(readFileSync(new URL(`../../locales/${name}/main.json`, import.meta.url)))
  const translations = { en: file("en"), zh: file("zh") }
  for (const [locale, text] of [["zh", "候选 2"], ["zh-TW", "候选 2"], ["en", "Candidate 2"], ["fr", "Candidate 2"], [undefined, "Candidate 2"]]) {
    speak(translations, locale)
    assert.equal(say("Candidate {number}", { number: 2 }), text)
  }
})

test("translations keep every value that a text names", () => {
  const { foresight } = JSON.parse(readFileSync(new URL("../../locales/zh/main.json", import.meta.url)))
  const named = (text) => (text.match(/\{\w+\}/g) ?? []).sort()
  for (const [english, chinese] of Object.entries(foresight)) assert.deepEqual(named(chinese), named(english), english)
})
