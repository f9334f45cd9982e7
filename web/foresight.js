// The live panel in ComfyUI: a sidebar tab, and the same view on the sampling nodes. It only watches, until somebody
// presses a button (panel/routes.py).

import { api } from "../../scripts/api.js"
import { app } from "../../scripts/app.js"
import { followLanguage } from "./language.js"
import { EVENTS, Runs, mark } from "./runs.js"
import { RunView } from "./view.js"
import { say } from "./words.js"

const NODES = new Set(["ForesightSampler", "ForesightMonitoredSampler", "ForesightSeedAudition"])
const WIDGET_HEIGHT = 300
const DRAW_MS = 250 // between two drawings: four a second are enough to follow, and more would slow the sampling
const FOLLOW_MS = 1500 // between looks at a live run that another tab has queued: its events go there

async function ask(path, options) {
  const answer = await api.fetchApi(path, options)
  const body = await answer.json().catch(() => ({}))
  if (!answer.ok) throw Object.assign(new Error(body.error ?? `the server answered ${answer.status}`), { status: answer.status })
  return body
}

const server = {
  pictureUrl: (run, trial, step) => api.apiURL(`/foresight/runs/${run}/trials/${trial}/steps/${step}.jpg`),
  decide: (run, decision, trials) =>
    ask(`/foresight/runs/${run}/decision`, {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ decision, trials }),
    }),
}

const runs = new Runs(ask)
for (const event of EVENTS) api.addEventListener(`foresight.${event}`, ({ detail }) => runs.receive(event, detail))
// Events may have been missed while the connection was down.
api.addEventListener("reconnected", () => runs.refresh().catch(console.warn))

const style = Object.assign(document.createElement("link"), { rel: "stylesheet", href: new URL("foresight.css", import.meta.url) })
document.head.append(style)

/** Calls `update` with each run that has changed, at most every DRAW_MS. */
function soon(update) {
  const changed = new Set()
  let timer = null
  return ({ detail }) => {
    changed.add(detail)
    timer ??= setTimeout(() => {
      timer = null
      const ids = [...changed]
      changed.clear()
      ids.forEach(update)
    }, DRAW_MS)
  }
}

/** The sidebar's content: which run, beside which other, and their views. Lives as long as the page. */
class Panel {
  constructor() {
    this.element = Object.assign(document.createElement("div"), { className: "foresight-panel" })
    this.hint = Object.assign(document.createElement("div"), {
      className: "foresight-hint",
      textContent: say("Runs of Foresight's samplers, of a search and of Foresight Watch appear here while they sample."),
    })
    this.choices = Object.assign(document.createElement("div"), { className: "foresight-choices" })
    this.views = Object.assign(document.createElement("div"), { className: "foresight-views" })
    this.selects = [say("Run"), say("Compare with")].map((label) => {
      const select = document.createElement("select")
      select.title = label
      select.setAttribute("aria-label", label)
      select.addEventListener("change", () => this.update())
      this.choices.append(select)
      return select
    })
    this.shown = [new RunView(server), new RunView(server)]
    this.views.append(...this.shown.map((view) => view.element))
    this.element.append(this.hint, this.choices, this.views)
    runs.addEventListener("change", soon(() => this.update()))
    document.addEventListener("visibilitychange", () => this.#follow())
  }

  open(place) {
    place.replaceChildren(this.element)
    runs.refresh().catch(console.warn)
    this.update()
  }

  /** Asks again for a live run of which no events come. No timer while nobody can see it. */
  #follow() {
    clearTimeout(this.timer)
    const { id, live, sequence } = runs.newest ?? {}
    if (document.hidden || !this.element.isConnected || !live) return
    if (this.asked !== id) runs.load((this.asked = id)) // the server makes pictures for those who have asked
    this.timer = setTimeout(() => {
      if (runs.newest?.sequence === sequence) runs.load(id).then(() => this.#follow())
    }, FOLLOW_MS)
  }

  update() {
    if (!this.element.isConnected) return
    this.#follow()
    const all = [...runs.states.values()].reverse()
    this.hint.hidden = all.length > 0
    this.choices.hidden = !all.length
    const [first, second] = this.selects
    fill(first, [["", say("Newest run")], ...all.map(named)])
    fill(second, [["", say("Compare with…")], ...all.map(named)])
    const states = [runs.states.get(first.value) ?? runs.newest, runs.states.get(second.value)]
    this.shown.forEach((view, i) => {
      view.element.hidden = !states[i]
      view.element.style.display = states[i] ? "" : "none"
      if (states[i]) view.update(states[i])
    })
  }
}

function named(state) {
  const { prompt, seed } = state.settings
  const text = prompt ?? say("No prompt")
  const noise = seed == null ? "" : `, ${say("seed {seed}", { seed })}`
  const begun = new Date(1000 * state.created).toLocaleTimeString() // runs of one seed have nothing else to tell them apart
  return [state.id, `${mark(state)} ${text.length > 48 ? `${text.slice(0, 47)}…` : text}${noise}, ${begun}`]
}

/** Sets a select's options and keeps what is chosen. */
function fill(select, options) {
  const chosen = select.value
  const same = options.length === select.options.length
    && options.every(([value, text], i) => select.options[i].value === value && select.options[i].text === text)
  if (same) return
  select.replaceChildren(...options.map(([value, text]) => new Option(text, value, false, value === chosen)))
}

/** The node of an execution id: "7", "12:7" inside a subgraph, "7.0.0.2" where a node has expanded. */
function findNode(id) {
  let graph = app.rootGraph ?? app.graph
  const path = String(id).split(".")[0].split(":")
  for (const part of path.slice(0, -1)) graph = graph?.getNodeById(Number(part))?.subgraph
  return graph?.getNodeById(Number(path.at(-1)))
}

/** Whether a run is of this graph and this node: ids are the same in many graphs. */
const ofNode = (state, node) => state.graph != null && state.graph === (app.rootGraph ?? app.graph)?.id && findNode(state.node) === node

function addView(node) {
  const view = new RunView(server)
  const hint = Object.assign(document.createElement("div"), {
    className: "foresight-hint", textContent: say("Previews and scores appear here while this node samples."),
  })
  const element = Object.assign(document.createElement("div"), { className: "foresight-on-node" })
  element.style.overflow = "auto"
  element.append(hint, view.element)
  view.element.style.display = "none"
  const fixed = () => WIDGET_HEIGHT
  const widget = node.addDOMWidget("foresight", "foresight", element, {
    serialize: false, hideOnZoom: false, getMinHeight: fixed, getHeight: fixed, getMaxHeight: fixed,
  })
  widget.serialize = false // neither in the prompt nor in the workflow file
  let shown = null
  const changed = soon((id) => {
    const state = runs.states.get(id)
    if (!state || (id !== shown && !ofNode(state, node))) return
    shown = id
    hint.style.display = "none"
    view.element.style.display = ""
    view.update(state)
  })
  runs.addEventListener("change", changed)
  for (const id of runs.states.keys()) changed({ detail: id }) // a graph that is opened again shows what it did
  const removed = node.onRemoved
  node.onRemoved = function (...rest) {
    runs.removeEventListener("change", changed)
    view.destroy()
    return removed?.apply(this, rest)
  }
}

let panel, place // the sidebar's content, and where it stands

/** Builds the panel anew: its words are those of the language in which it was built. */
function retell() {
  panel?.shown.forEach((view) => view.destroy())
  panel = null
  if (place?.isConnected) open(place)
}

function open(where) {
  place = where
  panel ??= new Panel()
  panel.open(place)
}

app.registerExtension({
  name: "foresight.panel",
  async init() {
    const translations = await ask("/i18n").catch(() => ({})) // the panel then speaks English
    await followLanguage(app, translations, retell)
  },
  nodeCreated(node) {
    if (NODES.has(node.comfyClass)) addView(node)
  },
  setup() {
    app.extensionManager.registerSidebarTab({
      id: "foresight", icon: "pi pi-eye", title: "Foresight", tooltip: say("Foresight: every candidate and trial, live"), type: "custom",
      render: open, // may be called again for the same place
    })
    // After a reload in mid-run the state comes from the server, and later events follow on it.
    runs.refresh().then(() => {
      for (const id of runs.states.keys()) runs.dispatchEvent(new CustomEvent("change", { detail: id }))
    }).catch(console.warn)
  },
})
