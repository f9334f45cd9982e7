// The score curve of a run, as SVG.

import { candidate } from "./race.js"
import { say } from "./words.js"

const SVG = "http://www.w3.org/2000/svg"
const CHART = { width: 300, height: 110, left: 34, right: 6, top: 6, bottom: 16 }

export const newChart = () => draw("svg", { viewBox: `0 0 ${CHART.width} ${CHART.height}`, class: "foresight-chart", role: "img" })

/** Draws the scores of a run's trials by step; hides itself where candidates have one look each. */
export function drawChart(chart, state) {
  const trials = state.trials.filter((trial) => !candidate(trial)) // single looks are no curve
  const { tau } = state.settings
  const scores = trials.flatMap((trial) => trial.trace.map(([, score]) => score)).filter((score) => score != null)
  const none = !scores.length
  chart.toggleAttribute("hidden", none)
  if (none) return
  const steps = Math.max(...trials.map((trial) => trial.steps))
  const values = tau == null ? scores : [...scores, tau]
  const [low, high] = [Math.min(...values), Math.max(...values)]
  const pad = (high - low || 0.1) * 0.12
  const x = (step) => CHART.left + ((step - 1) / Math.max(1, steps - 1)) * (CHART.width - CHART.left - CHART.right)
  const y = (score) =>
    CHART.top + ((high + pad - score) / (high - low + 2 * pad)) * (CHART.height - CHART.top - CHART.bottom)
  const floor = CHART.height - CHART.bottom
  const current = trials.findLast((trial) => trial.trace.length)
  const parts = [draw("title", {}, say("Alignment score by step: {count} scores, the last {score}",
    { count: current.trace.length, score: scores.at(-1).toFixed(3) }))]
  if (current.window) {
    const [first, last] = current.window
    parts.push(draw("rect", { class: "window", x: x(first), y: CHART.top, width: Math.max(1, x(last) - x(first)), height: floor - CHART.top }))
  }
  if (tau != null) {
    parts.push(draw("line", { class: "tau", x1: CHART.left, x2: CHART.width - CHART.right, y1: y(tau), y2: y(tau) }))
    parts.push(draw("text", { x: 2, y: y(tau) + 3 }, `τ ${tau.toFixed(2)}`))
  }
  for (const trial of trials) {
    const points = trial.trace.filter(([, score]) => score != null).map(([step, score]) => `${x(step)},${y(score)}`)
    if (points.length) parts.push(draw("polyline", { class: trial === current ? "current" : "earlier", points: points.join(" ") }))
    const { stop_step: stop, predicted_score: predicted, accepted } = trial.verdict ?? {}
    if (stop != null && predicted != null)
      parts.push(draw("circle", { class: accepted ? "accepted" : "rejected", cx: x(stop), cy: y(predicted), r: 3.5 }))
  }
  parts.push(draw("line", { class: "axis", x1: CHART.left, x2: CHART.width - CHART.right, y1: floor, y2: floor }))
  parts.push(draw("text", { x: CHART.left, y: CHART.height - 4 }, say("step {step}", { step: 1 })))
  parts.push(draw("text", { x: CHART.width - CHART.right, y: CHART.height - 4, "text-anchor": "end" }, steps))
  chart.replaceChildren(...parts)
}

function draw(tag, attributes, text) {
  const element = document.createElementNS(SVG, tag)
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value)
  if (text != null) element.textContent = text
  return element
}
