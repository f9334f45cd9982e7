// What the page knows of the runs. No DOM and no ComfyUI in here: tests/js runs it under node.

import { say } from "./words.js"

/** The events that the server sends about a run (panel/runs.py). */
export const EVENTS = ["start", "trial", "step", "verdict", "wait", "end"]

/**
 * The state of a run after one event, or null where the event does not follow on the state: an event was missed, and
 * the whole state has to be asked for again. The state itself is not changed.
 */
export function next(state, event, data) {
  if (event === "start") return data.state
  if (!state || data.sequence !== state.sequence + 1) return null
  const trials = [...state.trials]
  const change = (changes) => {
    trials[data.index] = { ...trials[data.index], ...changes }
    return { ...state, trials, sequence: data.sequence }
  }
  switch (event) {
    case "trial":
      return { ...state, trials: [...trials, data.trial], settings: data.settings, sequence: data.sequence }
    case "step": {
      const { trace, pictures, size } = trials[data.index]
      return change({
        step: data.step,
        trace: data.scored ? [...trace, [data.step, data.score]] : trace,
        pictures: data.pictured ? [...pictures, data.step] : pictures,
        size: size ?? data.size,
      })
    }
    case "verdict":
      return change({ verdict: data.verdict, step: data.step, decidable: false })
    case "wait":
      return { ...state, offered: { ...state.offered, left: data.seconds }, sequence: data.sequence }
    case "end":
      return { ...state, live: false, message: data.message, report: data.report, sequence: data.sequence }
  }
  return null
}

/** The runs by id, newest last, as events and answers of the server make them. `fetchJson(path)` asks the server. */
export class Runs extends EventTarget {
  constructor(fetchJson) {
    super()
    this.fetchJson = fetchJson
    this.states = new Map()
    this.loading = new Map()
  }

  /** Takes an event; what was missed is asked for. */
  receive(event, data) {
    const state = next(this.states.get(data.run), event, data)
    if (state) this.#set(state)
    else return this.load(data.run)
  }

  /** The state of a run from the server; one question at a time for each run. */
  load(id) {
    if (!this.loading.has(id)) {
      const answer = this.fetchJson(`/foresight/runs/${id}`)
        .then((state) => {
          const known = this.states.get(id)
          // Events may have come meanwhile, up to a later state than this answer.
          if (!known || state.sequence >= known.sequence) this.#set(state)
        })
        .catch((error) => error.status === 404 && this.#forget(id)) // a server that is away may come back
        .finally(() => this.loading.delete(id))
      this.loading.set(id, answer)
    }
    return this.loading.get(id)
  }

  /** All that the server still has: after a reload, and when a panel opens in another tab. */
  async refresh() {
    const { runs } = await this.fetchJson("/foresight/runs")
    const kept = new Set(runs.map((run) => run.id))
    for (const id of this.states.keys()) if (!kept.has(id)) this.#forget(id)
    await Promise.all(runs.reverse().map(({ id, live }) => (live || !this.states.has(id)) && this.load(id)))
    this.states = new Map([...this.states].sort(([, a], [, b]) => a.created - b.created))
    this.#tell(null)
  }

  get newest() {
    return [...this.states.values()].at(-1)
  }

  /** The newest run that a node (execution id) has worked on. */
  ofNode(node) {
    return [...this.states.values()].findLast((state) => state.node === node)
  }

  #set(state) {
    this.states.set(state.id, state)
    this.#tell(state.id)
  }

  #forget(id) {
    this.states.delete(id)
    this.#tell(id)
  }

  #tell(id) {
    this.dispatchEvent(new CustomEvent("change", { detail: id }))
  }
}

/** The trial that is being worked on: the last that has not ended, or else the last. */
export const current = (state) => state.trials.findLast((trial) => !trial.verdict) ?? state.trials.at(-1)

/** How a run ended, in one sign: what is delivered counts, not what was rejected on the way. */
export function mark({ live, message, report, settings: { tau } }) {
  if (live) return "●"
  if (message) return "–"
  const final = report?.final_score
  if (final != null && tau != null) return final >= tau ? "✓" : "✗"
  return { true: "✓", false: "✗" }[report?.accepted] ?? "–"
}

/** Every picture of a run in the order it was made: { trial (index), step }. A trial that searches begins before its
 *  candidates and goes on after them. */
export function pictures(state) {
  let [order, searching] = [[], []]
  state.trials.forEach(({ kind }, index) => {
    if (kind === "search") order.push(index)
    else [order, searching] = [[...order, ...searching], [index]]
  })
  return [...order, ...searching].flatMap((index) => state.trials[index].pictures.map((step) => ({ trial: index, step })))
}

/** Where a run is on the ladder: { rung: "waiting" | "current" | "accepted" | "rejected" | "done" (not judged) }. */
export function ladder(state) {
  const rungs = { 0: "waiting", 1: "waiting", 2: "waiting", "2->1": "waiting" }
  for (const { trial, kind, verdict } of state.trials) {
    const goesOn = !verdict || (verdict.accepted && (kind === "probe" || kind === "refine")) // the clip comes next
    if (goesOn) rungs[trial] = state.live ? "current" : "done"
    else rungs[trial] = !verdict.accepted ? "rejected" : verdict.rule ? "accepted" : "done"
  }
  return rungs
}

const kindWords = (kind) => ({
  sample: say("clip"), probe: say("single frame"), refine: say("better prompt"), inject: say("clip from the frame"),
  plain: say("clip, not judged"),
})[kind] ?? kind
const ruleWords = (rule) => ({
  early_reject: say("stays below the threshold"), give_up: say("falls below the threshold"),
  early_accept: say("stays above the threshold"), stable_stop: say("the score has settled"),
  budget: say("the window's best score"), below_floor: say("below the calibrated floor"),
  not_inspected: say("could not be judged"), user_accept: say("you accepted it"), user_reject: say("you rejected it"),
})[rule] ?? rule

/** Whether a run is a stream, of chunks and their draws. */
export const streams = (state) => state.trials.some((trial) => trial.kind === "chunk")

/** What happened in a draw of a stream's chunk, in one sentence. */
function chunkStory({ details, verdict, step, steps, trace }, tau) {
  const name = say("Chunk {chunk}, draw {draw}", details)
  const last = verdict?.predicted_score ?? trace.at(-1)?.[1]
  const score = last == null ? "" : say(", score {score}", { score: last.toFixed(3) })
  if (!verdict) return say("{what}: step {step} of {steps}", { what: name, step, steps }) + score
  const below = verdict.accepted && last != null && last < tau ? say(", still below {tau}", { tau: tau.toFixed(3) }) : ""
  return `${name}: ${verdict.accepted ? say("kept") : say("taken back")}${score}${below}`
}

/** What happened in a trial of the paper's plan, or in a draw of a chunk, in one sentence. */
export function story(trial, tau) {
  const { kind, verdict, step, steps } = trial
  if (kind === "chunk") return chunkStory(trial, tau)
  const name = say("Trial {name}", { name: trial.trial.replace("->", "→") })
  if (verdict?.details?.seed != null) return say("{name}, other noise: drawn", { name })
  const what = say("{name}, {kind}", { name, kind: kindWords(kind) })
  if (!verdict) {
    if (!steps) return say("{what}: asking…", { what })
    const last = trial.trace.at(-1)?.[1]
    const score = last == null ? "" : say(", score {score}", { score: last.toFixed(3) })
    return say("{what}: step {step} of {steps}", { what, step, steps }) + score
  }
  const note = verdict.message ? `. ${verdict.message}` : ""
  const predicted = verdict.predicted_score?.toFixed(3)
  const score = predicted == null ? "" : say(", predicted score {score}", { score: predicted })
  if (kind === "refine") {
    if (verdict.accepted) return say("{what}: found", { what })
    return say("{what}: none ({reason})", { what, reason: verdict.message ?? say("no reason given") })
  }
  if (kind === "probe" && verdict.details) {
    const better = verdict.details.better_by_delta
    const found = !verdict.accepted ? say("no better than the rejected clip")
      : better ? say("better than the rejected clip") : say("used all the same")
    const reason = verdict.rule?.startsWith("user_") ? `, ${ruleWords(verdict.rule)}` : ""
    return `${what}: ${found}${reason}${score}${note}`
  }
  if (!verdict.rule) return say("{what}: done", { what }) + (verdict.message ? ` (${verdict.message})` : "")
  const wanted = tau == null || !score ? "" : say(" (wanted {tau})", { tau: tau.toFixed(3) })
  const at = verdict.stop_step == null ? "" : say(" at step {step} of {steps}", { step: verdict.stop_step, steps })
  const judged = verdict.accepted ? say("accepted") : say("rejected")
  return `${what}: ${judged}${at}, ${ruleWords(verdict.rule)}${score}${wanted}${note}`
}

/** Words of `after` against `before`: [["same" | "gone" | "new", words], ...], by the longest common subsequence. */
export function difference(before, after) {
  const a = before.split(/\s+/).filter(Boolean)
  const b = after.split(/\s+/).filter(Boolean)
  const length = Array.from({ length: a.length + 1 }, () => new Uint16Array(b.length + 1))
  for (let i = a.length - 1; i >= 0; i--)
    for (let j = b.length - 1; j >= 0; j--)
      length[i][j] = a[i] === b[j] ? length[i + 1][j + 1] + 1 : Math.max(length[i + 1][j], length[i][j + 1])
  const parts = []
  const add = (kind, word) => (parts.at(-1)?.[0] === kind ? parts.at(-1)[1].push(word) : parts.push([kind, [word]]))
  let [i, j] = [0, 0]
  while (i < a.length || j < b.length) {
    if (i < a.length && j < b.length && a[i] === b[j]) [i, j] = (add("same", a[i]), [i + 1, j + 1])
    else if (j >= b.length || (i < a.length && length[i + 1][j] >= length[i][j + 1])) add("gone", a[i++])
    else add("new", b[j++])
  }
  return parts.map(([kind, words]) => [kind, words.join(" ")])
}
