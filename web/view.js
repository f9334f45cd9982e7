// One run as DOM: player, score curve, ladder, story, cost, prompt and buttons. Draws only when told to, or when visible.

import { difference, ladder, pictures, story } from "./runs.js"

const FRAME_MS = 160 // latent frames are four video frames apart: about as fast as the clip
const SVG = "http://www.w3.org/2000/svg"
const CHART = { width: 300, height: 110, left: 34, right: 6, top: 6, bottom: 16 }
const BUTTONS = [
  ["accept", "Accept now", "Keep this clip: nothing more is judged"],
  ["reject", "Reject now", "Go on to the next trial"],
  ["stop", "Stop", "Cancel the run"],
]

function make(tag, className, ...children) {
  const element = document.createElement(tag)
  if (className) element.className = className
  element.append(...children)
  return element
}

function draw(tag, attributes, text) {
  const element = document.createElementNS(SVG, tag)
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value)
  if (text != null) element.textContent = text
  return element
}

/** `server`: { pictureUrl(run, trial, step), decide(run, decision, trials) -> promise }. */
export class RunView {
  static #made = 0

  constructor(server) {
    this.server = server
    this.group = `foresight-${RunView.#made++}` // radio buttons of one name belong together, also across two views
    this.state = null
    this.frame = 0
    this.following = true // the newest picture
    this.playing = true
    this.image = new Image()
    this.image.addEventListener("load", () => this.#paint())
    this.image.addEventListener("error", () => this.#say("This picture is no longer kept."))

    this.heading = make("div", "foresight-prompt")
    this.canvas = make("canvas", "foresight-picture")
    this.canvas.tabIndex = 0
    this.canvas.setAttribute("role", "img")
    this.play = make("button", "foresight-play")
    this.slider = Object.assign(make("input", "foresight-history"), { type: "range", min: 0, title: "Earlier previews" })
    this.slider.setAttribute("aria-label", "Preview of which step")
    this.label = make("span", "foresight-label")
    this.chart = draw("svg", { viewBox: `0 0 ${CHART.width} ${CHART.height}`, class: "foresight-chart", role: "img" })
    this.rungs = make("ol", "foresight-ladder")
    this.stories = make("ul", "foresight-stories")
    this.cost = make("div", "foresight-cost")
    this.refined = make("div", "foresight-refined")
    this.buttons = make("div", "foresight-buttons", ...BUTTONS.map(([decision, label, title]) => {
      const button = Object.assign(make("button", `foresight-${decision}`, label), { type: "button", title })
      button.addEventListener("click", () => this.#decide(decision))
      return button
    }))
    this.offer = make("fieldset", "foresight-offer")
    this.notice = make("div", "foresight-notice")
    this.notice.setAttribute("role", "status")
    this.element = make("section", "foresight-run", this.heading, this.rungs, this.canvas,
      make("div", "foresight-controls", this.play, this.slider, this.label),
      this.chart, this.offer, this.buttons, this.notice, this.stories, this.cost, this.refined)

    this.play.addEventListener("click", () => this.#setPlaying(!this.playing))
    this.slider.addEventListener("input", () => {
      this.following = this.slider.valueAsNumber === Number(this.slider.max)
      this.#choosePicture()
    })
    this.canvas.addEventListener("pointermove", (event) => {
      this.scrubbing = true
      this.#show(Math.floor((event.offsetX / this.canvas.clientWidth) * this.#frames))
    })
    this.canvas.addEventListener("pointerleave", () => (this.scrubbing = false))
    this.canvas.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key]
      if (!step) return
      event.preventDefault()
      event.stopPropagation() // the canvas behind moves its nodes with the same keys
      this.#setPlaying(false)
      this.#show(this.frame + step)
    })
    // No timer runs while nobody can see the player.
    this.observer = new IntersectionObserver(([entry]) => {
      this.visible = entry.isIntersecting
      this.#schedule()
      if (this.visible && this.state) this.update(this.state)
    })
    this.observer.observe(this.canvas)
    this.onVisibility = () => this.#schedule()
    document.addEventListener("visibilitychange", this.onVisibility)
    this.#setPlaying(true)
  }

  /** Stops everything; the element may be thrown away. */
  destroy() {
    this.observer.disconnect()
    document.removeEventListener("visibilitychange", this.onVisibility)
    clearInterval(this.timer)
  }

  update(state) {
    if (state.id !== this.state?.id) {
      this.following = true
      this.#say("")
    }
    this.state = state
    const { settings, trials, report, live, message } = state
    this.heading.textContent = settings.prompt ?? "No prompt"
    Object.assign(this.element.dataset, { run: state.id, live })
    const rungs = ladder(state)
    this.rungs.hidden = trials.some((trial) => trial.kind === "audition")
    this.rungs.replaceChildren(...["0", "1", "2", "2->1"].map((rung) => {
      const item = make("li", `foresight-${rungs[rung]}`, rung.replace("->", "→"))
      item.title = `Trial ${rung}: ${rungs[rung]}`
      if (rungs[rung] === "current") item.setAttribute("aria-current", "step")
      return item
    }))
    this.stories.replaceChildren(...trials.map((trial) => make("li", "", story(trial, settings.tau))))
    const decidable = live && trials.at(-1)?.decidable
    for (const button of this.buttons.children)
      button.disabled = !(live && (decidable || button.classList.contains("foresight-stop")))
    this.buttons.hidden = !live
    this.#offered()
    this.cost.textContent = costs(report, trials, live, message)
    this.#refinement()
    this.#curve()
    this.#choosePicture()
  }

  get #frames() {
    return this.shown ? this.state.trials[this.shown.trial].size[0] : 1
  }

  #decide(decision) {
    this.server.decide(this.state.id, decision).then(
      () => this.#say(`Asked to ${decision}: done at the next step.`), (error) => this.#say(error.message))
  }

  /** The seeds of an audition, to be ticked. Built once for an offer, so that ticks are kept. */
  #offered() {
    const { offered, trials, id } = this.state
    this.offer.hidden = !offered
    if (!offered || this.offer.dataset.until === String(offered.until)) return
    this.offer.dataset.until = offered.until
    const most = offered.best.length // what the node's `keep` pays for
    const boxes = offered.trials.map((index) => {
      const trial = trials[index]
      const box = Object.assign(document.createElement("input"), {
        type: most > 1 ? "checkbox" : "radio", name: this.group, value: index, checked: offered.best.includes(index),
      })
      const label = make("label", "foresight-seed", box, ` ${trial.trial}, ${trial.verdict?.predicted_score?.toFixed(3) ?? "not scored"}`)
      if (trial.pictures.length) {
        const image = Object.assign(new Image(), {
          alt: `Preview of ${trial.trial}`,
          src: `${this.server.pictureUrl(id, index, trial.pictures.at(-1))}?frame=${Math.floor(trial.size[0] / 2)}`,
        })
        label.prepend(image)
      }
      return label
    })
    const go = Object.assign(make("button", "foresight-choose", "Finish these"), { type: "button" })
    go.addEventListener("click", () => {
      const ticked = [...this.offer.querySelectorAll("input:checked")].map((box) => Number(box.value))
      this.server.decide(id, "choose", ticked).then(() => this.#say(""), (error) => this.#say(error.message))
    })
    const question = most > 1 ? `Which seeds shall be finished? At most ${most}.` : "Which seed shall be finished?"
    this.offer.replaceChildren(make("legend", "", question), make("div", "foresight-seeds", ...boxes), go)
  }

  #say(text) {
    this.notice.textContent = text
  }

  #setPlaying(playing) {
    this.playing = playing
    this.play.textContent = playing ? "❚❚" : "▶"
    this.play.title = playing ? "Pause" : "Play"
    this.play.setAttribute("aria-label", this.play.title)
    this.#schedule()
  }

  #schedule() {
    clearInterval(this.timer)
    this.timer = null
    if (this.playing && this.visible && !document.hidden)
      this.timer = setInterval(() => this.scrubbing || this.#show(this.frame + 1), FRAME_MS)
  }

  #choosePicture() {
    const all = pictures(this.state)
    this.canvas.hidden = !all.length
    this.slider.max = Math.max(0, all.length - 1)
    this.slider.disabled = all.length < 2
    if (this.following) this.slider.value = this.slider.max
    this.shown = all[this.slider.valueAsNumber]
    if (!this.shown) {
      this.label.textContent = this.state.live ? "waiting for the first preview" : "no preview was made"
      return
    }
    const { trial, step } = this.shown
    this.label.textContent = `trial ${this.state.trials[trial].trial.replace("->", "→")}, step ${step}`
    this.canvas.setAttribute("aria-label", `Preview of ${this.label.textContent}`)
    const url = this.server.pictureUrl(this.state.id, trial, step)
    // Pictures are made when they are asked for, so a panel that cannot be seen asks for none.
    if (this.visible !== false && this.image.dataset.url !== url) {
      this.image.dataset.url = url
      this.image.src = url
    }
  }

  #show(frame) {
    const frames = this.#frames
    this.frame = ((frame % frames) + frames) % frames
    this.#paint()
  }

  #paint() {
    if (!this.shown || !this.image.complete || !this.image.naturalWidth) return
    const width = this.image.naturalWidth / this.#frames
    const height = this.image.naturalHeight
    if (this.canvas.width !== width || this.canvas.height !== height) Object.assign(this.canvas, { width, height })
    const frame = Math.min(this.frame, this.#frames - 1)
    this.canvas.getContext("2d").drawImage(this.image, frame * width, 0, width, height, 0, 0, width, height)
    this.canvas.dataset.frame = frame
  }

  #refinement() {
    const { report, settings, trials } = this.state
    const refined = trials.findLast((t) => t.kind === "refine" && t.verdict?.accepted)?.verdict
    const after = report?.refined_prompt ?? refined?.prompt
    this.refined.hidden = !after
    if (!after) return
    if (after === settings.prompt && refined?.details?.seed != null) {
      this.refined.replaceChildren(make("b", "", "Other noise: "), `seed ${refined.details.seed}`)
      return
    }
    const words = difference(settings.prompt ?? "", after).flatMap(([kind, text]) =>
      [make({ same: "span", gone: "del", new: "ins" }[kind], "", text), " "])
    this.refined.replaceChildren(make("b", "", "Refined prompt: "), ...words)
  }

  #curve() {
    const { trials, settings } = this.state
    const { tau } = settings
    const scores = trials.flatMap((trial) => trial.trace.map(([, score]) => score)).filter((score) => score != null)
    this.chart.toggleAttribute("hidden", !scores.length)
    if (!scores.length) return
    const steps = Math.max(...trials.map((trial) => trial.steps))
    const values = tau == null ? scores : [...scores, tau]
    const [low, high] = [Math.min(...values), Math.max(...values)]
    const pad = (high - low || 0.1) * 0.12
    const x = (step) => CHART.left + ((step - 1) / Math.max(1, steps - 1)) * (CHART.width - CHART.left - CHART.right)
    const y = (score) =>
      CHART.top + ((high + pad - score) / (high - low + 2 * pad)) * (CHART.height - CHART.top - CHART.bottom)
    const floor = CHART.height - CHART.bottom
    const current = trials.findLast((trial) => trial.trace.length)
    const parts = [draw("title", {}, `Alignment score by step: ${current.trace.length} scores, the last ${scores.at(-1).toFixed(3)}`)]
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
    parts.push(draw("text", { x: CHART.left, y: CHART.height - 4 }, "step 1"))
    parts.push(draw("text", { x: CHART.width - CHART.right, y: CHART.height - 4, "text-anchor": "end" }, steps))
    this.chart.replaceChildren(...parts)
  }
}

/** Evaluations and seconds, spent and beside a plain run; or why the run ended. */
function costs(report, trials, live, message) {
  const parts = message ? [message === "stopped" ? "Stopped by the user." : `Failed: ${message}.`] : []
  if (report && !live) {
    const plain = report.nfe_plain
    const saved = plain == null || report.nfe >= plain ? "" : ` (${plain - report.nfe} fewer)`
    parts.push(`${report.nfe} model evaluations, a plain run takes ${plain ?? "?"}${saved}.`)
    const estimate = report.seconds_plain_estimate
    parts.push(`${report.seconds.toFixed(1)} s${estimate == null ? "" : `, plain about ${estimate.toFixed(1)} s`}.`)
    if (report.final_score != null) parts.push(`Final score ${report.final_score.toFixed(3)}.`)
  } else {
    const steps = trials.reduce((sum, trial) => sum + (trial.verdict?.nfe ?? trial.step), 0)
    parts.push(`${steps} model evaluations${live ? " so far" : ""}.`)
  }
  return parts.join(" ")
}
