// The panel's words in the page's language. English stands in the code; locales/*/main.json have the others under
// "foresight", which ComfyUI serves (/i18n).

let texts = {}

/** The text in the page's language, with {name} replaced by values.name. Every text is written out at its call. */
export function say(text, values = {}) {
  return (texts[text] ?? text).replace(/\{(\w+)\}/g, (_, name) => values[name])
}

/** Learns the words of a language ("zh", "zh-TW": as ComfyUI's setting names it); English where it has none. */
export function speak(translations, locale) {
  texts = (translations[locale] ?? translations[locale?.split("-")[0]])?.foresight ?? {}
}
