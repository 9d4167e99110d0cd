/** The frame of each screen, and what it shows when there is nothing to show. */
import type { ComponentChildren } from "preact";
import { Icon, type IconName } from "./icons";

export function Page({ title, crumb, actions, children, fill }: { title: ComponentChildren; crumb?: { href: string; text: string }; actions?: ComponentChildren; children: ComponentChildren; fill?: boolean }) {
  return (
    <main class={fill ? "page fill" : "page"} id="main" tabIndex={-1}>
      <header class="top">
        <div class="titles">
          {crumb && <a class="crumb" href={crumb.href}><Icon name="back" />{crumb.text}</a>}
          <h1>{title}</h1>
        </div>
        {actions && <div class="actions">{actions}</div>}
      </header>
      {children}
    </main>
  );
}

export function Empty({ icon, title, children }: { icon: IconName; title: string; children?: ComponentChildren }) {
  return (
    <div class="empty">
      <Icon name={icon} />
      <p class="what">{title}</p>
      {children}
    </div>
  );
}

export function Stat({ label, value, unit, sub, tone, children }: { label: string; value: ComponentChildren; unit?: string; sub?: ComponentChildren; tone?: string | undefined; children?: ComponentChildren }) {
  return (
    <div class={`stat${tone ? ` ${tone}` : ""}`}>
      <span class="label">{label}</span>
      <span class="figure">{value}{unit && <small>{unit}</small>}</span>
      {sub !== undefined && <span class="sub">{sub}</span>}
      {children}
    </div>
  );
}

/** How full something is. */
export function Meter({ part, label }: { part: number; label: string }) {
  const percent = Math.max(0, Math.min(100, part * 100));
  return (
    <div class="meter" role="meter" aria-label={label} aria-valuemin={0} aria-valuemax={100} aria-valuenow={Math.round(percent)}>
      <div class={percent > 90 ? "bad" : percent > 75 ? "warn" : ""} style={{ width: `${percent}%` }} />
    </div>
  );
}

export function Facts({ facts }: { facts: [string, ComponentChildren][] }) {
  return (
    <dl class="facts">
      {facts.map(([name, text]) => (
        <div key={name}>
          <dt>{name}</dt>
          <dd>{text}</dd>
        </div>
      ))}
    </dl>
  );
}
