// What a report shows on its own node: moving clips and its text, as lines. The picture beside them is core's own.

import { api } from "../../scripts/api.js"
import { app } from "../../scripts/app.js"
import { say } from "./words.js"

export const REPORTS = new Set(["ForesightRunReport", "ForesightEnhancerReport", "ForesightStreamingReport"])
const WIDGET_HEIGHT = 260

function make(tag, className, ...children) {
  const element = Object.assign(document.createElement(tag), { className })
  element.append(...children)
  return element
}

/** A text of the server's in the page's language: its template, and values that may be such texts themselves. */
function told([template, values]) {
  const inner = Object.entries(values).map(([name, value]) => [name, Array.isArray(value) ? told(value) : value])
  return say(template, Object.fromEntries(inner))
}

function moving({ filename, subfolder, type, finished, said = {}, ...text }) {
  const [name, about] = ["name", "about"].map((key) => (said[key] ? told(said[key]) : text[key]))
  const image = Object.assign(new Image(), { alt: name, loading: "lazy" })
  image.src = api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type })}`)
  return make("figure", `foresight-clip${finished ? " foresight-delivered" : ""}`, image,
    make("figcaption", "", make("b", "", name), make("span", "", about)))
}

/** Adds the place for clips and text to a report's node, and fills it at every run. */
export function addReport(node) {
  const clips = make("div", "foresight-clips")
  const text = make("pre", "foresight-text")
  const element = make("div", "foresight-report", clips, text)
  element.dataset.node = node.comfyClass
  element.hidden = true
  const height = () => (element.hidden ? 0 : WIDGET_HEIGHT)
  const widget = node.addDOMWidget("foresight_report", "foresight", element, {
    serialize: false, hideOnZoom: false, getMinHeight: height, getHeight: height, getMaxHeight: height,
  })
  widget.serialize = false // neither in the prompt nor in the workflow file
  const show = (output) => {
    if (!output?.text) return
    text.textContent = [output.text].flat().join("\n")
    clips.replaceChildren(...(output.foresight_clips ?? []).map(moving))
    if (element.hidden) {
      element.hidden = false
      node.setSize([Math.max(node.size[0], 360), Math.max(node.size[1], node.computeSize()[1])])
    }
  }
  const executed = node.onExecuted
  node.onExecuted = function (output) {
    executed?.apply(this, arguments)
    show(output)
  }
  setTimeout(() => show(app.nodeOutputs?.[node.id])) // a graph that is opened again
}
