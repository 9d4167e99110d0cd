import { render } from "preact";
import { App } from "./app";
import { refresh } from "./state/session";
import "./style.css";

void refresh();
render(<App />, document.getElementById("app")!);
