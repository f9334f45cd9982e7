// The candidates of a race or an audition as rows: look, score against its floor, state, evaluations, progress.

import { candidates, measured, words } from "./race.js"
import { say } from "./words.js"

function make(tag, className, ...children) {
  const element = document.createElement(tag)
  element.className = className
  element.append(...children)
  return element
}

class Row {
  constructor(choose) {
    this.image = new Image()
    this.picture = make("button", "foresight-thumb", this.image)
    Object.assign(this.picture, { type: "button", title: say("Show this candidate above") })
    this.picture.addEventListener("click", () => choose(this.row))
    this.name = make("b", "")
    this.about = make("span", "foresight-about")
    this.state = make("span", "foresight-state")
    this.score = make("span", "foresight-score")
    this.spent = make("span", "foresight-spent")
    this.done = make("span", "foresight-fill")
    this.mark = make("i", "")
    this.element = make("li", "", this.picture, make("div", "foresight-facts",
      make("div", "", this.name, " ", this.about), make("div", "", this.state),
      make("div", "foresight-numbers", this.score, this.spent), make("div", "foresight-bar", this.done, this.mark)))
  }

  update(row, pictureUrl) {
    this.row = row
    this.element.className = `foresight-candidate foresight-${row.state}`
    this.element.toggleAttribute("aria-current", row.live)
    this.name.textContent = say("Candidate {number}", row)
    this.about.textContent = row.selfRefined ? say("seed {seed}, self-refined", row) : say("seed {seed}", row)
    this.state.textContent = words(row)
    this.score.textContent = measured(row)
    this.score.classList.toggle("foresight-below", row.floor != null && row.score != null && row.score < row.floor)
    this.spent.textContent = say("{nfe} evaluations", row)
    this.done.style.width = `${(100 * row.step) / Math.max(1, row.steps)}%`
    this.mark.style.left = `${(100 * row.lookStep) / Math.max(1, row.steps)}%`
    this.mark.title = say("the look, after step {lookStep}", row)
    this.picture.disabled = !row.shown
    const url = row.shown ? pictureUrl(...row.shown) : ""
    if (this.image.dataset.url === url) return
    Object.assign(this.image, { src: url || "data:,", alt: say("Look of candidate {number}", row) }).dataset.url = url
  }
}

/** server: as RunView's. choose(row): a person wants to see a candidate. */
export class Rows {
  constructor(server, choose) {
    this.server = server
    this.choose = choose
    this.rows = new Map()
    this.element = make("ol", "foresight-candidates")
  }

  update(state) {
    if (state.id !== this.id) {
      this.id = state.id
      this.rows.clear()
      this.element.replaceChildren()
    }
    const pictureUrl = (trial, step) =>
      `${this.server.pictureUrl(state.id, trial, step)}?frame=${Math.floor(state.trials[trial].size[0] / 2)}`
    for (const row of candidates(state)) {
      if (!this.rows.has(row.number)) {
        this.rows.set(row.number, new Row(this.choose))
        this.element.append(this.rows.get(row.number).element)
      }
      this.rows.get(row.number).update(row, pictureUrl)
    }
  }
}
