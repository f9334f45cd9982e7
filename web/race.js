// What the page says of the candidates of a race or an audition. No DOM in here: tests/js runs it under node.

import { say } from "./words.js"

const KINDS = ["candidate", "audition", "search", "finish"]

/** Whether a trial is that of a candidate, and not a rung of the paper's ladder. */
export const candidate = (trial) => KINDS.includes(trial.kind)

/** Whether a run has candidates: a race, an audition or a search, which may be part of a trial of the paper's. */
export const races = (state) => state.trials.some(candidate)

const searches = (state) => state.trials.some((trial) => trial.kind === "search")

/**
 * The candidates of a run in the order in which they were begun: { number, seed, selfRefined, floor, lookStep, score,
 * trials: [index], shown: [index, step] of the look's picture or null, live, step, steps, nfe, state, final }.
 * state: "looking", "passed", "finishing", "aside", "chosen", "finished", "delivered" or "stopped"; byHand: accepted or
 * rejected.
 */
export function candidates(state) {
  const rows = new Map()
  state.trials.forEach((trial, index) => {
    if (!KINDS.includes(trial.kind)) return
    const { candidate: number, seed, self_refined: selfRefined = false, floor = null, look_step: own } = trial.details
    const lookStep = own ?? rows.get(number)?.lookStep ?? state.settings.look_step
    const row = rows.get(number) ?? { number, seed, selfRefined, floor, lookStep, score: null, trials: [], nfe: 0, byHand: null }
    const live = state.live && !trial.verdict
    rows.set(number, Object.assign(row, look(trial, row), {
      trials: [...row.trials, index], live, step: trial.step, steps: trial.steps, state: stage(trial, live, lookStep),
      // A look's evaluations are not made again when it goes on; while it runs, steps stand for evaluations.
      nfe: row.nfe + (trial.verdict?.nfe ?? Math.max(0, trial.step - (trial.kind === "finish" ? lookStep : 0))),
    }))
  })
  for (const told of state.report?.candidates ?? []) {
    const row = rows.get(told.candidate)
    if (row) Object.assign(row, { state: { "put aside": "aside" }[told.state] ?? told.state, nfe: told.nfe, byHand: told.by_hand })
  }
  return [...rows.values()].map((row) => ({ ...row, shown: picture(state, row) }))
}

function look(trial, row) {
  if (trial.kind === "finish") return {}
  const { rule, predicted_score: score } = trial.verdict ?? {}
  const byHand = { user_accept: "accepted", user_reject: "rejected" }[rule] ?? row.byHand
  return { score: score ?? trial.trace.at(-1)?.[1] ?? null, byHand }
}

function stage(trial, live, lookStep) {
  if (trial.kind === "finish") return live ? "finishing" : trial.verdict ? "finished" : "stopped"
  if (live) return trial.kind === "candidate" && trial.step >= lookStep ? "passed" : "looking"
  if (!trial.verdict) return "stopped"
  if (trial.kind === "search") return trial.verdict.accepted ? "chosen" : "aside"
  return trial.kind === "audition" || !trial.verdict.accepted ? "aside" : "finished"
}

/** The picture of the look, or the nearest one that is still kept. */
function picture(state, row) {
  const first = row.trials[0]
  const steps = state.trials[first].pictures
  const nearest = (best, step) => (Math.abs(step - row.lookStep) < Math.abs(best - row.lookStep) ? step : best)
  return steps.length ? [first, steps.reduce(nearest)] : null
}

/** A candidate's state in plain words. */
export function words(row) {
  const { step, steps, lookStep } = row
  if (row.byHand === "rejected" && row.state === "aside") return say("put aside by you")
  switch (row.state) {
    case "looking": return say("being looked at: step {step}, the look is at {lookStep}", { step, lookStep })
    case "passed": return row.byHand === "accepted" || row.score == null
      ? say("being finished: step {step} of {steps}", { step, steps })
      : say("passed, being finished: step {step} of {steps}", { step, steps })
    case "finishing": return say("goes on to its end: step {step} of {steps}", { step, steps })
    case "aside": return say("put aside")
    case "chosen": return say("chosen by the search")
    case "finished": return say("finished")
    case "delivered": return row.byHand === "accepted" ? say("delivered, as you decided") : say("delivered")
    default: return say("stopped")
  }
}

/** A candidate's score at its look against its floor, in plain words. */
export function measured(row) {
  if (row.score == null) return row.state === "looking" ? "" : say("not scored")
  const score = row.score.toFixed(3)
  if (row.floor == null) return say("score {score}", { score })
  return say("score {score}, floor {floor}", { score, floor: row.floor.toFixed(3) })
}

/** One sentence: how the run decides. */
export function rules(state) {
  const { look_step: step, steps, looks = [], plan, keep } = state.settings
  if (searches(state)) return say("Candidates of one clip are scored at a part of the way; those of low reward are dropped, and the best goes on.")
  if (plan === "audition")
    return say("Each seed's preview is scored after step {step} of {steps}; the best {keep} go on from there.", { step, steps, keep })
  if (looks.every(({ floor, floor_self_refined: refined }) => floor == null && refined == null))
    return say("Each candidate's preview is scored after step {step} of {steps}; the best one goes on from there.", { step, steps })
  return say("Each candidate's preview is scored after step {step} of {steps}. Below its floor it is put aside and the next seed is tried; if none passes, the nearest goes on.", { step, steps })
}

/** One sentence: what is delivered, and why; empty until that is known. */
export function outcome(state) {
  const rows = candidates(state)
  const row = rows.find((row) => row.state === "delivered")
  if (!row) return ""
  const [number, count] = [row.number, rows.length]
  const aside = row.trials.length > 1 // it was put aside first
  if (row.byHand === "accepted") return say("You accepted candidate {number}: it is delivered.", { number })
  if (row.byHand === "rejected") return say("You put every candidate aside: number {number} is delivered all the same.", { number })
  if (rows.filter((row) => row.state !== "aside").length > 1)
    return say("Candidate {number} of {count} is delivered: the better of two finished clips.", { number, count })
  if (aside && row.floor != null) {
    const values = { number, count }
    return count > 1
      ? say("None of {count} passed: candidate {number} came nearest to its floor and is delivered. It is still below.", values)
      : say("Candidate {number} is still below its floor, but the budget allows no other.", values)
  }
  if (count === 1) {
    if (row.selfRefined) return say("The first candidate, self-refined, is delivered.")
    return row.floor == null ? say("The only candidate: your own run, not touched.") : say("Passed: your own run, not touched.")
  }
  return aside
    ? say("Candidate {number} of {count} had the best score at its look: it is delivered.", { number, count })
    : say("Candidate {number} of {count} passed: it is delivered.", { number, count })
}
