// Browsers start no workers for pages that are opened from the disk. The search of the theme runs in a hidden frame there:
// this class does for it what Worker does elsewhere.
if (location.protocol === "file:") {
  window.IFrameWorker = class extends EventTarget {
    constructor(url) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.body.append(frame)
      const scope = frame.contentWindow
      scope.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }))
      const script = frame.contentDocument.createElement("script")
      script.src = new URL(url, location.href)
      this.loaded = new Promise(resolve => script.addEventListener("load", () => resolve(scope)))
      this.frame = frame
      frame.contentDocument.body.append(script)
    }

    postMessage(data) {
      this.loaded.then(scope => scope.dispatchEvent(new scope.MessageEvent("message", { data })))
    }

    terminate() {
      this.frame.remove()
    }
  }
  window.Worker = window.IFrameWorker
}
