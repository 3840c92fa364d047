// What scrolls sideways can be reached by keyboard: the theme wraps tables after the page is there.
addEventListener("load", () => setTimeout(() => {
  for (const node of document.querySelectorAll(".md-typeset__scrollwrap, .formula, .diagram")) node.tabIndex = 0;
}, 50));
