// The language that is set in ComfyUI, for the panel's words and, where the frontend forgets them, for the nodes' texts.

import { speak } from "./words.js"

const SETTING = "Comfy.Locale"
const KNOWN = "nodeDefs.ForesightSampler.display_name"
const LOADING_MS = 3000 // at most: after that the nodes speak English
const ASK_MS = 20

/** Learns the page's language, now and whenever it is changed; `changed` is called after a change.
 *  translations: what the server gives at /i18n. */
export async function followLanguage(app, translations, changed) {
  const learn = (locale) => {
    speak(translations, locale)
    return restore(translations[locale], locale)
  }
  app.ui.settings.addEventListener(`${SETTING}.change`, ({ detail }) => learn(detail.value).then(changed))
  await learn(app.extensionManager?.setting?.get(SETTING))
}

/** ComfyUI 0.3.75 merges what packs bring into a language that is not loaded yet, and loading it then drops that. The
 *  texts are merged again, as the frontend itself does; where it has kept them, or cannot be asked, nothing is done. */
async function restore(texts, locale) {
  const page = document.querySelector("#vue-app")?.__vue_app__
  const i18n = page?._context.provides[page.__VUE_I18N_SYMBOL__]?.global
  if (!texts || !i18n) return
  for (let waited = 0; i18n.locale.value !== locale && waited < LOADING_MS; waited += ASK_MS) {
    await new Promise((done) => setTimeout(done, ASK_MS))
  }
  if (!i18n.te(KNOWN, locale)) i18n.mergeLocaleMessage(locale, texts)
}
