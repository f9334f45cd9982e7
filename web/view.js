// One run as DOM: player, candidates or ladder and story, cost, prompt and buttons. Draws only when told to, or when
// visible.

import { drawChart, newChart } from "./chart.js"
import { candidate, candidates, outcome, races, rules } from "./race.js"
import { Rows } from "./rows.js"
import { current, difference, ladder, pictures, story, streams } from "./runs.js"
import { say } from "./words.js"

const FRAME_MS = 160 // latent frames are four video frames apart: about as fast as the clip
const BUTTONS = ["accept", "reject", "stop"]

function make(tag, className, ...children) {
  const element = document.createElement(tag)
  if (className) element.className = className
  element.append(...children)
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
    this.image.addEventListener("error", () => this.#say(say("This picture is no longer kept.")))

    this.heading = make("div", "foresight-prompt")
    this.read = make("div", "foresight-hint foresight-read")
    this.canvas = make("canvas", "foresight-picture")
    this.canvas.tabIndex = 0
    this.canvas.setAttribute("role", "img")
    this.play = make("button", "foresight-play")
    this.slider = Object.assign(make("input", "foresight-history"), { type: "range", min: 0, title: say("Earlier previews") })
    this.slider.setAttribute("aria-label", say("Preview of which step"))
    this.label = make("span", "foresight-label")
    this.chart = newChart()
    this.rungs = make("ol", "foresight-ladder")
    this.rules = make("div", "foresight-hint foresight-rules")
    this.rows = new Rows(server, (row) => {
      const all = pictures(this.state)
      const last = all.findLastIndex(({ trial }) => row.trials.includes(trial))
      this.slider.value = last
      this.following = row.live && last === all.length - 1
      this.#choosePicture()
    })
    this.outcome = make("div", "foresight-outcome")
    this.stories = make("ul", "foresight-stories")
    this.cost = make("div", "foresight-cost")
    this.refined = make("div", "foresight-refined")
    this.buttons = make("div", "foresight-buttons", ...BUTTONS.map((decision) => {
      const button = Object.assign(make("button", `foresight-${decision}`), { type: "button" })
      button.addEventListener("click", () => this.#decide(decision))
      return button
    }))
    this.offer = make("fieldset", "foresight-offer")
    this.left = make("div", "foresight-hint foresight-left")
    this.notice = make("div", "foresight-notice")
    this.notice.setAttribute("role", "status")
    this.element = make("section", "foresight-run", this.heading, this.read, this.rungs, this.outcome, this.canvas,
      make("div", "foresight-controls", this.play, this.slider, this.label),
      this.chart, this.offer, this.buttons, this.notice, this.rules, this.rows.element, this.stories, this.cost, this.refined)

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
    if (this.asked && this.asked !== moment(state)) this.#say("") // it has been done
    const { settings, trials, live } = state
    this.heading.textContent = settings.prompt ?? say("No prompt")
    this.read.textContent = (settings.text_notes ?? []).join("; ")
    this.read.hidden = !this.read.textContent
    this.read.title = (settings.scored_pieces ?? []).join("\n")
    Object.assign(this.element.dataset, { run: state.id, live })
    const raced = races(state)
    this.rules.hidden = this.rows.element.hidden = !raced
    this.rules.textContent = raced ? rules(state) : ""
    this.rows.update(state)
    this.outcome.textContent = outcome(state)
    const rungs = ladder({ ...state, trials: trials.filter((trial) => !candidate(trial)) })
    const rest = trials.filter((trial) => !candidate(trial))
    this.stories.hidden = raced && !rest.length
    this.rungs.hidden = this.stories.hidden || streams(state)
    this.rungs.replaceChildren(...["0", "1", "2", "2->1"].map((rung) => {
      const item = make("li", `foresight-${rungs[rung]}`, rung.replace("->", "→"))
      item.title = `${say("Trial {name}", { name: rung })}: ${rungWords(rungs[rung])}`
      if (rungs[rung] === "current") item.setAttribute("aria-current", "step")
      return item
    }))
    this.stories.replaceChildren(...rest.map((trial) => make("li", "", story(trial, settings.tau))))
    this.#label(raced)
    this.buttons.hidden = !live
    this.#offered()
    this.cost.textContent = costs(state)
    this.#refinement()
    drawChart(this.chart, this.state)
    this.#choosePicture()
  }

  get #frames() {
    return this.shown ? this.state.trials[this.shown.trial].size[0] : 1
  }

  #decide(decision) {
    const asked = moment(this.state)
    this.server.decide(this.state.id, decision).then(() => {
      if (asked !== moment(this.state)) return // it is done already
      this.#say(say("Asked for: it is done at the next step."))
      this.asked = asked
    }, (error) => this.#say(error.message))
  }

  /** The buttons' words, and which of them can be pressed: a candidate that has passed its look can only be stopped. */
  #label(raced) {
    const { live } = this.state
    const trial = current(this.state)
    const open = live && trial?.decidable && !(trial.kind === "candidate" && trial.step >= trial.window[1])
    const [accept, reject, stop] = this.buttons.children
    accept.textContent = say("Accept now")
    accept.title = raced ? say("Finish this candidate and deliver it") : say("Keep this clip: nothing more is judged")
    reject.textContent = say("Reject now")
    reject.title = raced ? say("Put this candidate aside and try the next seed") : say("Go on to the next trial")
    stop.textContent = say("Stop")
    stop.title = say("Cancel the run")
    accept.disabled = reject.disabled = !open
    stop.disabled = !live
  }

  /** The seeds of an audition, to be ticked. Built once for an offer, so that ticks are kept. */
  #offered() {
    const { offered, trials, id } = this.state
    this.offer.hidden = !offered
    this.left.textContent = offered?.left == null ? "" : say("Waiting for you: {left} s, then the best are taken.", offered)
    if (!offered || this.offer.dataset.until === String(offered.until)) return
    this.offer.dataset.until = offered.until
    const most = offered.best.length // what the node's `keep` pays for
    const boxes = offered.trials.map((index) => {
      const trial = trials[index]
      const box = Object.assign(document.createElement("input"), {
        type: most > 1 ? "checkbox" : "radio", name: this.group, value: index, checked: offered.best.includes(index),
      })
      const label = make("label", "foresight-seed", box,
        ` ${say("seed {seed}", trial.details)}, ${trial.verdict?.predicted_score?.toFixed(3) ?? say("not scored")}`)
      if (trial.pictures.length) {
        const image = Object.assign(new Image(), {
          alt: say("Look of candidate {number}", { number: trial.details.candidate }),
          src: `${this.server.pictureUrl(id, index, trial.pictures.at(-1))}?frame=${Math.floor(trial.size[0] / 2)}`,
        })
        label.prepend(image)
      }
      return label
    })
    const go = Object.assign(make("button", "foresight-choose", say("Finish these")), { type: "button" })
    go.addEventListener("click", () => {
      const ticked = [...this.offer.querySelectorAll("input:checked")].map((box) => Number(box.value))
      this.server.decide(id, "choose", ticked).then(() => this.#say(""), (error) => this.#say(error.message))
    })
    const question = most > 1 ? say("Which seeds shall be finished? At most {most}.", { most }) : say("Which seed shall be finished?")
    this.offer.replaceChildren(make("legend", "", question), this.left, make("div", "foresight-seeds", ...boxes), go)
  }

  #say(text) {
    this.asked = null
    this.notice.textContent = text
  }

  #setPlaying(playing) {
    this.playing = playing
    this.play.textContent = playing ? "❚❚" : "▶"
    this.play.title = playing ? say("Pause") : say("Play")
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
      this.label.textContent = this.state.live ? say("waiting for the first preview") : say("no preview was made")
      return
    }
    const { trial, step } = this.shown
    const { trial: name, details, kind } = this.state.trials[trial]
    this.label.textContent = kind === "chunk" ? say("chunk {chunk}, draw {draw}, step {step}", { ...details, step })
      : details?.candidate != null
      ? say("candidate {number}, step {step}", { number: details.candidate, step })
      : say("trial {name}, step {step}", { name: name.replace("->", "→"), step })
    this.canvas.setAttribute("aria-label", say("Preview of {what}", { what: this.label.textContent }))
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
      this.refined.replaceChildren(make("b", "", say("Other noise:"), " "), say("seed {seed}", refined.details))
      return
    }
    const words = difference(settings.prompt ?? "", after).flatMap(([kind, text]) =>
      [make({ same: "span", gone: "del", new: "ins" }[kind], "", text), " "])
    this.refined.replaceChildren(make("b", "", say("Refined prompt:"), " "), ...words)
  }
}

const rungWords = (rung) => ({
  waiting: say("waiting"), current: say("current"), accepted: say("accepted"), rejected: say("rejected"), done: say("done"),
})[rung]

/** What changes when something asked for is done: the next step, or the next part of the run. */
const moment = (state) => [state.live, state.trials.length, ...state.trials.map(({ step, verdict }) => step + !!verdict)].join()

/** Evaluations and seconds, spent and beside a plain run; or why the run ended. */
function costs(state) {
  const { report, trials, settings, live, message } = state
  const parts = message ? [message === "stopped" ? say("Stopped by the user.") : say("Failed: {message}.", { message })] : []
  const { nfe_plain: plain, nfe_worst_case: most, nfe } = report ?? {}
  if (report && !live) {
    parts.push(say("{nfe} model evaluations, a plain run takes {plain}", { nfe, plain: plain ?? "?" })
      + (plain != null && nfe < plain ? say(" ({saved} fewer).", { saved: plain - nfe })
        : most != null ? say(", this one at most {most}.", { most }) : "."))
    const seconds = report.seconds.toFixed(1)
    const estimate = report.seconds_plain_estimate?.toFixed(1)
    parts.push(estimate == null ? `${seconds} s.` : say("{seconds} s, plain about {estimate} s.", { seconds, estimate }))
    if (report.final_score != null) parts.push(final(report, settings))
  } else {
    const spent = races(state) ? candidates(state).reduce((sum, row) => sum + row.nfe, 0)
      : trials.reduce((sum, trial) => sum + (trial.verdict?.nfe ?? trial.step), 0)
    parts.push(live ? say("{nfe} model evaluations so far.", { nfe: spent }) : say("{nfe} model evaluations.", { nfe: spent }))
    if (settings.worst_case != null)
      parts.push(say("A plain run takes {plain}, this one at most {most}.", { plain: settings.nfe_plain, most: settings.worst_case }))
  }
  return parts.join(" ")
}

function final({ final_score: score, final_score_of: of, final_scores: items = [], closer }, { tau }) {
  const shown = (each) => each?.toFixed(3) ?? say("not scored")
  const parts = [overall(score, of, tau)]
  if (items.length > 1) parts.push(...items.map((each, i) => say("Item {item}: {score}.", { item: i + 1, score: shown(each) })))
  if (closer) {
    const number = closer.trial.match(/^candidate (\d+)$/)?.[1]
    const trial = number ? say("Candidate {number}", { number }) : say("Trial {name}", { name: closer.trial.replace("->", "→") })
    parts.push(say("That is below the {score} of {trial}, which was left.", { score: shown(closer.score), trial }))
  }
  return parts.join(" ")
}

function overall(score, of, tau) {
  const values = { score: score.toFixed(3), of: of === "frames" ? say("by its frames") : say("by its preview"), tau: tau?.toFixed(3) }
  if (tau != null && score < tau) return say("Final score {score} ({of}), still below {tau}.", values)
  return say("Final score {score} ({of}).", values)
}
